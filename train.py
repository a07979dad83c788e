"""Two-stage training of LLaVA (section 4.2): first the projector, then the language model too.

    python train.py                         # the miniature: toy world, stage 1, stage 2, scores
    python chat.py --model runs/toy/llava   # talk with the result
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
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from minillava.checkpoint import TOY, load_llava, save_llava
from minillava.data import LlavaData, words_of
from minillava.evaluation import scienceqa
from minillava.files import index_of, replace_file, write
from minillava.terminal import print_in_utf8
from minillava.toy.miniature import draw_world, report
from minillava.toy.recipes import TOY_RECIPES
from minillava.training import checkpoints, distributed, options, plan
from minillava.training.allocator import keep_freed_memory
from minillava.training.batches import step_batches
from minillava.training.data_check import check_data
from minillava.training.loss_picture import draw_loss
from minillava.training.optimizer import gradient_norm, loss_and_gradients, make_optimizers
from minillava.training.optimizer import set_lr, take_step
from minillava.training.recipes import RECIPES, warn_of_repeats
from minillava.training.records import Records
from minillava.training.run_folder import already_there, asked_for, closing_words, losses
from minillava.training.run_folder import measured, refuse_mixing, rewind, write_config
from minillava.training.sampler import micro_batches
from minillava.training.signals import Stop, end_by_signal
from minillava.weights.layouts import load_config
from minillava.weights.saving import refuse_projector


# ------------------------------------------------------------------------------------ one whole run

def run(recipe, sources, setup, device):
    """A recipe from its data to its weights: out/mm_projector.bin after stage 1, else out/llava."""
    result = setup.out / recipe.result
    recipe.accumulation(distributed.ranks())  # an error now rather than after the weights are read
    asked = asked_for(recipe, sources, setup)
    refuse_mixing(setup, asked)
    if result.exists():
        return

    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(setup.seed)
    model, tokenizer = make_model(recipe, sources)
    if recipe.stage == 2:
        refuse_projector(model.config.projector)  # it could not be saved at the end
    data = make_data(recipe, sources, setup.out, tokenizer, model.config)
    if distributed.rank() == 0:
        warn_of_repeats(recipe.batch, len(data))
        if not measured(setup.out):
            write_config(setup.out, asked)
    distributed.barrier()

    model = train(model, data, recipe, setup, device)
    if distributed.rank() == 0:
        draw_loss([(f"stage {recipe.stage}", losses(setup.out))], setup.out / "loss.png")
        save(model, tokenizer, recipe.stage, result)
        print(closing_words(recipe, len(data), setup.out))
    distributed.barrier()


def make_model(recipe, sources):
    """CLIP, LLaMA and a projector, new or from a run of stage 1; or a whole LLaVA from `init`."""
    init, vision, language = sources.init, sources.vision, sources.language
    if init is None:
        model, tokenizer = load_llava(
            vision=vision, language=language, projector=recipe.projector, device="cpu")
    elif (init / "mm_projector.bin").exists():
        model, tokenizer = load_llava(
            vision=vision, language=language, projector=init / "mm_projector.bin", device="cpu")
    else:
        whole = init / "llava" if (init / "llava").exists() else init
        model, tokenizer = load_llava(whole, vision=vision, device="cpu")

    # what the weights are trained with travels with them
    prompt_format = ""
    if sources.data.is_dir():
        prompt_format = "QCM-ALE" if sources.answer_first else recipe.prompt_format
    template = recipe.template if recipe.stage == 2 else model.config.template
    model.config = replace(model.config, template=template, image_aspect_ratio=recipe.aspect,
                           prompt_format=prompt_format)
    return model, tokenizer


def make_data(recipe, sources, out, tokenizer, config):
    path, images = sources.data, sources.images
    if path.is_dir():  # ScienceQA's own folder
        path, images = out / "scienceqa.json", scienceqa.image_folder(path, "train")
        if distributed.rank() == 0:
            samples = scienceqa.convert(sources.data, "train", config.prompt_format,
                                        text_only=sources.text_only)
            scienceqa.check_images(samples, images)
            text = json.dumps(samples)
            if not path.exists() or path.read_text(encoding="utf-8") != text:  # a new index
                write(path, text)
    if distributed.rank() == 0:  # one process makes the index, the others find it
        index_of(path, out, words_of)
    distributed.barrier()
    return LlavaData(path, images, tokenizer, config, recipe.template, recipe.max_length, out)


def train(model, data, recipe, setup, device):
    """The loop: one stage, from the newest checkpoint on -> the trained model, whole on rank 0."""
    ranks, rank = distributed.ranks(), distributed.rank()
    dtype = getattr(torch, setup.dtype)

    # which samples each step takes
    accumulate = recipe.accumulation(ranks)
    order = micro_batches(data.lengths(), recipe.per_gpu, ranks, rank, accumulate,
                          recipe.grouped, recipe.epochs, setup.seed)
    steps = len(order) // accumulate

    # what is trained, on the device, and by what
    model.freeze_for(recipe.stage)
    model.language_model.checkpointing = recipe.checkpointing
    wrapped = distributed.wrap(model, device, setup.shard, dtype)
    optimizers = make_optimizers(wrapped, recipe.lr, recipe.muon_lr)

    # where an earlier run stopped
    first = checkpoints.resume(setup.out, wrapped, optimizers)
    if rank == 0:
        rewind(setup.out, first)

    batches = step_batches(data, order[first * accumulate :], accumulate, setup.workers, device)
    records = Records(setup.out, model, recipe.stage, device)
    bar = tqdm(total=steps, initial=first, desc=f"stage {recipe.stage}", disable=rank > 0)
    with Stop() as stop, bar:
        for step, batch in enumerate(batches, first):
            if stop.on_any_rank():
                checkpoints.save(setup.out, step, wrapped, optimizers, setup.keep)
                bar.close()
                records.flush()
                end_by_signal(setup.out, step, stop.signal)

            lr = set_lr(optimizers, step, steps)
            loss = forward_backward(wrapped, batch, recipe, dtype, device)
            norm = gradient_norm(wrapped, recipe.max_grad_norm)
            take_step(optimizers)

            records.add(step, lr, batch, loss, norm)
            bar.update()
            last = step + 1 == steps
            save_now = (step + 1) % setup.save_every == 0 and not last
            # between two of these the GPU need not be waited for
            if device.type == "cpu" or save_now or step % 10 == 0 or last:
                bar.set_postfix(loss=f"{records.flush():.3f}")
            if save_now:
                checkpoints.save(setup.out, step + 1, wrapped, optimizers, setup.keep)
    return distributed.gathered(wrapped, model)


def forward_backward(model, batch, recipe, dtype, device):
    """One step's micro-batches, whose gradients add up -> this rank's part of the loss."""
    ranks, accumulate = distributed.ranks(), len(batch.micro)
    total = 0
    for n, tensors in enumerate(batch.micro, 1):
        tensors = [x.to(device, non_blocking=True) for x in tensors]
        share = recipe.share_of(batch.supervised, len(tensors[-1]), ranks, accumulate)
        with distributed.synced(model, last=n == accumulate):
            total += loss_and_gradients(model, dtype, tensors, share)
    return total


def save(model, tokenizer, stage, result):
    if stage == 2:
        model.drop_unused_blocks()
        save_llava(model.to("cpu", torch.bfloat16), tokenizer, result)
        return
    weights = {}
    for name, p in model.mm_projector.state_dict().items():
        weights[f"model.mm_projector.{name}"] = p.cpu()
    torch.save(weights, result.with_suffix(".tmp"))
    replace_file(result.with_suffix(".tmp"), result)


# ----------------------------------------------------------------------------------- the miniature

def miniature(recipes, stage_2, sources, setup, scenes, heldout, per_type, device):
    """The whole of LLaVA at the size of a laptop, from two backbones; stage 2 may be ScienceQA."""
    since = time.time()
    world, pretrain, result = setup.out / "world", setup.out / "pretrain", setup.out / "llava"
    science = stage_2 == "toy-scienceqa"
    if measured(pretrain) and not setup.resume:
        raise already_there(setup.out)

    # scenes, captions and boxes, and what is asked about them
    if distributed.rank() == 0:
        draw_world(world, scenes, heldout, setup.seed, science)
    distributed.barrier()

    # stage 1: the projector learns to describe
    stage = replace(sources, data=world / "pretrain.json", images=world / "train")
    run(recipes["toy-pretrain"], stage, replace(setup, out=pretrain), device)

    # stage 2: projector and language model learn to converse
    stage = replace(stage, init=pretrain, data=world / "finetune.json")
    if science:
        stage = replace(stage, data=world / "scienceqa", images=None)
    run(recipes[stage_2], stage, setup, device)

    # what has been learned
    if distributed.rank() == 0:
        curves = [("stage 1", losses(pretrain)), ("stage 2", losses(setup.out))]
        draw_loss(curves, setup.out / "loss.png")
        if not science:
            model, tokenizer = load_llava(result, device=device, dtype=torch.float32)
            report(model, tokenizer, world, setup.out, per_type, setup.seed)
        score, talk = "Score it:\n    python eval_scienceqa.py", "Talk with it:\n    python chat.py"
        print(f"\nAll in {(time.time() - since) / 60:.1f} minutes. "
              f"The losses are in {setup.out / 'loss.png'}. "
              f"{score if science else talk} --model {result}")


# -------------------------------------------------------------------------------- the command line

def main():
    print_in_utf8()
    parser = options.make_parser(__doc__, RECIPES | TOY_RECIPES)
    parser.add_argument("--scenes", type=int, default=3600,
                        help="miniature: training scenes; more teach better")
    parser.add_argument("--heldout", type=int, default=400, help="miniature: held-out scenes")
    parser.add_argument("--per-type", type=int, default=110,
                        help="miniature: held-out questions of each type")
    args = parser.parse_args()
    with options.errors_in_one_line():
        story(args)


def story(args):
    options.refuse_wrong_numbers(args)
    name = args.recipe or "toy-finetune"
    recipes = options.changed_recipes(args, RECIPES | TOY_RECIPES)
    recipe, toy = recipes[name], name in TOY_RECIPES
    sources = options.sources_of(args)
    if toy:
        sources = replace(sources, vision=args.vision or TOY / "clip",
                          language=args.language or TOY / "vicuna")
    setup = options.setup_of(args, recipe, toy)

    if args.print or args.plan:
        config = load_config(sources.vision, sources.language, recipe.projector, recipe.image_size)
    if args.print:
        print(plan.description(config, recipe, sources, setup.out))
    elif args.plan:
        print(plan.plan_lines(config, recipe, args.gpus, setup.shard, setup.dtype, args.mfu))
    elif args.recipe is None or name == "toy-scienceqa" and not (sources.data or sources.init):
        options.refuse_data(sources)
        device = distributed.set_up(args.device, setup.shard)
        miniature(recipes, name, sources, setup, args.scenes, args.heldout, args.per_type, device)
    else:
        options.refuse_missing(name, sources)
        if args.check_data:
            model, tokenizer = make_model(recipe, sources)
            data = make_data(recipe, sources, setup.out, tokenizer, model.config)
            sys.exit(1 if check_data(data, setup.workers) else 0)
        run(recipe, sources, setup, distributed.set_up(args.device, setup.shard))


if __name__ == "__main__":
    main()
