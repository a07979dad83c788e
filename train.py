"""Two-stage training of LLaVA (section 4.2): first the projector, then the language model too.

    python train.py                         # the miniature: toy world, stage 1, stage 2, scores
    python chat.py --model runs/toy/llava   # talk with the result
    python train.py --init runs/toy --scenes 12000 --seed 1 --lr 4e-4 --out runs/second
                                            # it goes on learning, on new scenes
    python train.py --recipe toy-scienceqa --scenes 24000 --out runs/scienceqa
                                            # the miniature's ScienceQA: 23 minutes on a core

    python train.py --recipe v1.5-pretrain --vision clip --language vicuna \\
        --data blip_laion_cc_sbu_558k.json --images images --out runs/pretrain
                                            # stage 1; with torchrun on many GPUs
    torchrun --nproc-per-node 8 train.py --recipe v1.5-finetune --vision clip --language vicuna \\
        --init runs/pretrain --data llava_v1_5_mix665k.json --images playground/data \\
        --out runs/finetune                 # stage 2
    python train.py --recipe v1-scienceqa --vision clip --language vicuna --init runs/pretrain \\
        --data ScienceQA --out runs/scienceqa

    python train.py --recipe v1.5-finetune --plan       # before that: what will it take?
    ... --check-data                        # and is every sample in order?
    ... --resume                            # after a stop of any kind: go on, to the same bits
"""
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from minillava.checkpoint import TOY, load_llava
from minillava.evaluation import scienceqa
from minillava.terminal import errors_in_one_line
from minillava.toy.miniature import make_miniature, with_replay
from minillava.toy.recipes import TOY_RECIPES
from minillava.training import checkpoints, distributed, options, plan, results, run_folder
from minillava.training.batches import step_batches
from minillava.training.data_check import check_data, show_samples
from minillava.training.loss_picture import draw_loss
from minillava.training.new_words import learn_words
from minillava.training.optimizer import clip_gradients, loss_and_gradients, make_optimizers
from minillava.training.optimizer import set_lr, take_step
from minillava.training.recipes import RECIPES, fitted, warn_of_repeats
from minillava.training.records import Records
from minillava.training.sampler import micro_batches
from minillava.training.samples import Together, draw_replay, lay_out, load_samples
from minillava.training.samples import share_of, write_samples
from minillava.training.signals import Stop, end_by_signal
from minillava.training.trained_parts import choose_trained, refuse_few_bits
from minillava.training.validation import Validation
from minillava.weights.allocator import keep_freed_memory
from minillava.weights.devices import training_dtype
from minillava.weights.saving import refuse_projector

STOPPED = "stopped; a run that had begun goes on from its last checkpoint with --resume"


# ------------------------------------------------------------------------------------ one whole run

def run(recipe, sources, setup, device):
    """A recipe from its data to its weights: out/mm_projector.bin, out/llava or out/adapter."""
    out = setup.out
    leads = distributed.leads()
    locked = run_folder.lock(out) if leads else None  # until this function returns
    asked = run_folder.asked_for(recipe, sources, setup)
    run_folder.enter(setup, asked)
    if (out / recipe.result).exists():
        if leads:
            print(f"Nothing is left to do: {out / recipe.result} is there.")
        return

    # the model, and what it learns from
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(setup.seed)
    model, tokenizer, base = make_model(recipe, sources)
    data, kept_apart = make_data(recipe, sources, setup, tokenizer, model.config)
    data, recipe = fit_together(data, recipe, sources, setup)
    asked["settings"]["samples_a_step"] = recipe.batch
    run_folder.enter(setup, asked)  # other GPUs may want steps of another size
    if leads:
        warn_of_repeats(recipe.batch, len(data))
    distributed.barrier()

    def save(wrapped, path):
        weights = distributed.trained_weights(wrapped, model)
        if leads:
            results.save(weights, model, tokenizer, recipe, base, path, sources.vision)

    validation = None
    if kept_apart:
        validation = Validation(kept_apart, recipe.per_gpu, setup.eval_every, setup.patience,
                                keep=partial(save, path=out / "best"))
    wrapped = train(model, data, recipe, setup, device, validation)
    save(wrapped, out / recipe.result)
    if leads:
        show_result(recipe, len(data), out, validation, sources.quantize)
    distributed.barrier()


def show_result(recipe, samples, out, validation, quantize):
    """The curve of the loss as a picture, a few answers, and what can be done with the weights."""
    curve = (f"stage {recipe.stage}", run_folder.losses(out))
    draw_loss([curve], out / "loss.png", run_folder.val_losses(out))
    if validation and recipe.stage == 2:
        results.show_answers(out / "best", validation.data, quantize)
    print(results.closing_words(recipe, samples, out, validation))


def make_model(recipe, sources):
    """-> (model, tokenizer, folder it is from): a whole LLaVA, or CLIP, LLaMA and a projector."""
    if sources.starts_whole:
        base = sources.whole_folder
        model, tokenizer = load_llava(
            base, vision=sources.vision, device="cpu", quantize=sources.quantize)
    else:
        base = sources.language
        projector = sources.init / "mm_projector.bin" if sources.init else recipe.projector
        model, tokenizer = load_llava(
            vision=sources.vision, language=base, projector=projector, device="cpu",
            quantize=sources.quantize)

    refuse_few_bits(model, recipe, base)
    if recipe.stage == 2 and not recipe.lora:
        refuse_projector(model.config.projector)  # it could not be saved at the end
    if sources.new_words:
        tokenizer = learn_words(model, tokenizer, sources.new_words)
    prompt_format = ""
    if scienceqa.is_folder(sources.data):
        prompt_format = "QCM-ALE" if sources.answer_first else recipe.prompt_format
    config = run_folder.carried_config(model.config, recipe, sources)
    model.config = replace(config, prompt_format=prompt_format)

    choose_trained(model, recipe)
    return model, tokenizer, base.resolve()


def make_data(recipe, sources, setup, tokenizer, config):
    """-> the samples to learn from, and those that are kept apart or None."""
    data, images, out = sources.data, sources.images, setup.out
    if scienceqa.is_folder(sources.data):
        data = out / "scienceqa.json"
        images = scienceqa.image_folder(sources.data, "train")
        if distributed.leads():
            problems = scienceqa.convert(
                sources.data, "train", config.prompt_format, text_only=sources.text_only)
            scienceqa.check_images(problems, images)
            write_samples(data, problems)

    learned, kept_apart = lay_out(data, images, out, sources.val, setup.seed)
    template = recipe.template if recipe.stage == 1 else config.template
    load = partial(load_samples, tokenizer=tokenizer, config=config, template=template,
                   max_length=recipe.max_length, out=out)
    return load(*learned), load(*kept_apart) if kept_apart else None


def fit_together(data, recipe, sources, setup):
    """The recipe fitted to its data, and old samples mixed in, where they are asked for.

    All epochs are then a single long one, in which the old samples are others each time.
    """
    share = sources.replay
    samples = round(len(data) / (1 - share))
    width = data.config.language_config.hidden_size
    recipe = fitted(recipe, samples, width, distributed.ranks())
    if recipe.min_steps and distributed.leads():
        print(f"Fitted to {samples} samples: {recipe.batch} a step, {recipe.epochs} epochs, "
              f"at a rate of {recipe.lr:.2g}")
    if not share:
        return data, recipe

    path = setup.out / "replay.json"
    if distributed.leads():
        count = round(recipe.epochs * len(data) * share / (1 - share))
        draw_replay(sources.replay_data, count, path, setup.seed)
    old = load_samples(path, sources.replay_images, data.tokenizer, data.config, data.template,
                       data.max_length, setup.out)
    return Together(recipe.epochs * [data] + [old]), replace(recipe, epochs=1)


def train(model, data, recipe, setup, device, validation=None):
    """The loop: one stage, from the newest checkpoint on -> the model, wrapped for many ranks."""
    dtype = training_dtype(setup.dtype, device)

    # which samples each step takes
    accumulate = recipe.accumulation(distributed.ranks())
    order = micro_batches(data.lengths(), recipe.per_gpu, distributed.ranks(), distributed.rank(),
                          accumulate, recipe.grouped, recipe.epochs, setup.seed)
    steps = len(order) // accumulate

    # what is trained, on the device, and by what
    model.language_model.checkpointing = recipe.checkpointing
    wrapped = distributed.wrap(model, device, setup.shard, dtype)
    optimizers = make_optimizers(wrapped, *recipe.rates)

    first = resume(setup.out, wrapped, optimizers, validation)
    batches = step_batches(data, order[first * accumulate :], accumulate, setup.workers, device)
    with Stop() as stop, Records(setup.out, model, recipe, device, first, steps) as records:
        for step, batch in enumerate(batches, first):
            if stop.on_any_rank():
                save_checkpoint(step, wrapped, optimizers, setup, records)
                records.bar.close()
                end_by_signal(setup.out, step, stop.signal)

            lr = set_lr(optimizers, step, steps)
            loss = forward_backward(wrapped, batch, recipe, dtype, device)
            norm = clip_gradients(wrapped, recipe.max_grad_norm)
            take_step(optimizers)

            val_loss = None
            last = step + 1 == steps
            if validation and (last or validation.is_due(step)):
                val_loss = validation.measure(wrapped, dtype, device)
                last = last or validation.patience_is_over
            records.add(step, lr, batch, loss, norm, val_loss)
            if last:
                break
            if (step + 1) % setup.save_every == 0:
                save_checkpoint(step + 1, wrapped, optimizers, setup, records)
    return wrapped


def forward_backward(model, batch, recipe, dtype, device):
    """One step's micro-batches, whose gradients add up -> this rank's loss.

    The step's loss is the mean over the ranks, as DDP and FSDP2 take the mean of the gradients.
    """
    ranks = distributed.ranks()
    accumulate = len(batch.micro)
    total = 0
    for n, tensors in enumerate(batch.micro, 1):
        tensors = [x.to(device, non_blocking=True) for x in tensors]
        *_, learn_at = tensors
        divisor = recipe.loss_divisor(batch.supervised, len(learn_at), ranks, accumulate)
        with distributed.synced(model, last=n == accumulate):
            total += loss_and_gradients(model, dtype, tensors, divisor)
    return total


def resume(out, wrapped, optimizers, validation):
    """Brings back what an earlier part of the run came to -> the step it stopped at, or 0."""
    step = checkpoints.resume(out, wrapped, optimizers)
    if distributed.leads():
        run_folder.rewind(out, step)
    if validation:
        distributed.barrier()
        validation.losses = [loss for _, loss in run_folder.val_losses(out)]
    return step


def save_checkpoint(step, wrapped, optimizers, setup, records):
    records.flush()  # a loss that is not finite ends the run here, and is not saved
    checkpoints.save(setup.out, step, wrapped, optimizers, setup.keep)


# -------------------------------------------------------------------------------- the command line

def main():
    args = options.make_parser(__doc__, RECIPES | TOY_RECIPES).parse_args()
    with errors_in_one_line(STOPPED, rank=int(os.environ.get("RANK", 0))):
        name, recipes, sources, setup = options.read(args, RECIPES, TOY_RECIPES, shipped=TOY)
        recipe = recipes[name]

        if args.print or args.plan:
            config = plan.planned_config(recipe, sources)
        if args.print:
            print(plan.description(config, recipe, sources, setup.out))
        elif args.plan:
            gpus = args.gpus or (1 if name in TOY_RECIPES else 8)
            print(plan.plan_lines(config, recipe, gpus, setup.shard, setup.dtype, args.mfu,
                                  plan.planned_bits(sources)))
        elif args.check_data:
            options.refuse_missing(name, sources)
            look_at_data(recipe, sources, setup)
        else:
            draws = name == "toy-scienceqa" and not (sources.data or sources.init)
            world = args.scenes, args.heldout, args.per_type
            if args.recipe and not draws:
                world = None
            begin(name, recipes, sources, setup, args.device, world)


def begin(name, recipes, sources, setup, device, world):
    """A recipe on the data that are given, or the miniature, on a world of this size."""
    if world:
        options.refuse_data(sources)
    else:
        options.refuse_missing(name, sources)
    run_folder.refuse_overwriting(sources, setup.out)

    device = distributed.set_up(device, setup.shard)
    if world:
        make_miniature(run, recipes, name, sources, setup, *world, device)
    else:
        if sources.replay and not sources.replay_data:
            sources = with_replay(sources, setup.out / "replay", setup.seed)
        run(recipes[name], sources, setup, device)
    distributed.end()


def look_at_data(recipe, sources, setup):
    """Shows three samples as they will be trained, then names all that are wrong, of --val too."""
    if share_of(sources.val):
        sources = replace(sources, val=None)  # a part of what is read anyway
    model, tokenizer, _ = make_model(recipe, sources)
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # nothing is left behind
        setup = replace(setup, out=Path(folder))
        data, kept_apart = make_data(recipe, sources, setup, tokenizer, model.config)
        show_samples(data, tokenizer)
        bad = sum(check_data(part, setup.workers) for part in (data, kept_apart) if part)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
