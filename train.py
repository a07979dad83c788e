"""Two-stage training of LLaVA (section 4.2): first the projector alone, then projector and language model.

    python train.py                      # the whole miniature: toy world, stage 1, stage 2, held-out scores
    python chat.py --model runs/toy/llava   # talk with the result
    python train.py --recipe toy-scienceqa --scenes 24000 --out runs/scienceqa  # the miniature's ScienceQA: 23 minutes on a core

    python train.py --recipe v1.5-pretrain --vision clip --language vicuna --data blip_laion_cc_sbu_558k.json \\
        --images images --out runs/pretrain             # stage 1; with torchrun on many GPUs
    torchrun --nproc-per-node 8 train.py --recipe v1.5-finetune --vision clip --language vicuna --init runs/pretrain \\
        --data llava_v1_5_mix665k.json --images playground/data --out runs/finetune             # stage 2
    python train.py --recipe v1-scienceqa --vision clip --language vicuna --init runs/pretrain --data ScienceQA \\
        --out runs/scienceqa
    python train.py --recipe v1.5-finetune --plan       # before that: what will it take?
    ... --check-data                                    # and is every sample in order?
    ... --resume                                        # after a stop of any kind: go on, to the same bits
"""
import argparse
import json
import math
import os
import resource
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from minillava.checkpoint import TOY, load_llava
from minillava.data import LlavaData, collate_noted, words_of
from minillava.evaluation import scienceqa
from minillava.files import index_of, write
from minillava.llava import IGNORE_INDEX, Llava
from minillava.toy.miniature import draw_world, report
from minillava.training import checkpoints, distributed, plan
from minillava.training.optimizer import forward_backward_in, make_optimizers, set_lr, take_step
from minillava.training.run_folder import begin, draw_loss, measured, rewind
from minillava.training.sampler import micro_batches
from minillava.weights.layouts import load_config
from minillava.weights.saving import save_llava

# batch is that of a step over all GPUs and accumulation; per_gpu is how much of it fits on an A100 of 80 GB. All use AdamW,
# cosine, 3 % warm-up, no decay and no clipping (LLaVA's DeepSpeed configurations name none). mean: tokens of a sample.
V1 = dict(projector="linear", aspect="square", image_size=224, max_length=2048, muon_lr=None, grouped=False,
          checkpointing=True)
V15 = V1 | dict(projector="mlp2x_gelu", image_size=336)
TOY_RUN = dict(projector="mlp2x_gelu", aspect="square", image_size=96, max_length=1024, grouped=True, checkpointing=False)
RECIPES = {
    # LLaVA, section 5 and appendix; scripts/pretrain.sh: CC3M-595K, rate 2e-3, 128 samples a step, one epoch
    "v1-pretrain": V1 | dict(stage=1, template="plain", lr=2e-3, batch=128, per_gpu=16, epochs=1, samples=595375, mean=280),
    # the same; scripts/finetune_full_schedule.sh: 158K, 2e-5, 32 (the script says 128), three epochs
    "v1-finetune": V1 | dict(stage=2, template="vicuna_v1", lr=2e-5, batch=32, per_gpu=4, epochs=3, samples=157712,
                              mean=620),
    # section 5.2; scripts/finetune_sqa.sh: 12 epochs from stage 1 on, reasoning before the answer
    "v1-scienceqa": V1 | dict(stage=2, template="vicuna_v1", lr=2e-5, batch=32, per_gpu=4, epochs=12,
                               samples=12726, mean=450),
    # LLaVA-1.5, table 9; scripts/v1_5/pretrain.sh
    "v1.5-pretrain": V15 | dict(stage=1, template="plain", lr=1e-3, batch=256, per_gpu=32, epochs=1,
                                 samples=558128, mean=600),
    # the same; scripts/v1_5/finetune.sh: pictures padded to a square, batches of like length and of one modality
    "v1.5-finetune": V15 | dict(stage=2, template="vicuna_v1", lr=2e-5, batch=128, per_gpu=16, epochs=1,
                                 samples=665298, mean=900, aspect="pad", grouped=True),
    # measured on two cores: Muon reaches the loss of AdamW in a third of the steps
    "toy-pretrain": TOY_RUN | dict(stage=1, template="plain", lr=2e-3, muon_lr=None, batch=32, per_gpu=32, epochs=5,
                                   samples=4200, mean=60),
    "toy-finetune": TOY_RUN | dict(stage=2, template="vicuna_v1", lr=1e-3, muon_lr=0.007, batch=16, per_gpu=16, epochs=1,
                                   samples=10300, mean=250),
    "toy-scienceqa": TOY_RUN | dict(stage=2, template="vicuna_v1", lr=1e-3, muon_lr=0.007, batch=32, per_gpu=32, epochs=1,
                                    samples=48000, mean=150),
}


# ------------------------------------------------------------------------------------------------------------- the loop

def train(model, tokenizer, data, recipe, args, rank, device):
    """One stage, from the last checkpoint in args.out on if there is one; leaves the trained weights in `model` (rank 0)."""
    ranks, out = distributed.ranks(), args.out
    accumulate = accumulation(recipe, ranks)
    batches = micro_batches(data.lengths(), recipe["per_gpu"], ranks, rank, accumulate, recipe["grouped"], recipe["epochs"],
                            args.seed)
    steps, dtype = len(batches) // accumulate, {"bfloat16": torch.bfloat16, "float32": torch.float32}[args.dtype]
    model.freeze_for(recipe["stage"])
    model.language_model.checkpointing = recipe["checkpointing"]
    wrapped = distributed.wrap(model, device, args.shard, dtype)
    optimizers = make_optimizers(wrapped, recipe["lr"], recipe["muon_lr"])
    done = checkpoints.checkpoints(out)
    first = max(done, default=0)
    if first:
        checkpoints.load(done[first], wrapped, optimizers)
    if rank == 0:
        rewind(out, first)
    loader = iter(DataLoader(data, batch_sampler=batches[first * accumulate :], collate_fn=collate_noted,
                             num_workers=args.workers, pin_memory=device.type == "cuda",
                             worker_init_fn=distributed.ignore_signals))
    records = Records(out, recipe, model, ranks, rank, device)
    stop, bar = distributed.Stop(), tqdm(total=steps, initial=first, desc=f"stage {recipe['stage']}", disable=rank > 0)

    with bar:
        for step in range(first, steps):
            micro = [next(loader) for _ in range(accumulate)]
            notes = [note for *_, note in micro]
            for line in (line for note in notes for line in note["bad"]):
                bar.write(f"passed over {line}", file=sys.stderr)
            supervised, tokens, images, bad, cut, signalled = distributed.add_up([
                sum((labels[:, 1:] != IGNORE_INDEX).sum().item() for _, labels, _, _ in micro),
                sum(ids.numel() for ids, *_ in micro), sum(len(pixels) for _, _, pixels, _ in micro),
                sum(len(note["bad"]) for note in notes), sum(note["cut"] for note in notes), stop.signal])
            if signalled:
                checkpoints.save(out, step, wrapped, optimizers, args.keep)
                bar.close()
                records.flush(bar)
                return end_by_signal(out, step, stop.signal or signal.SIGTERM, rank)
            lr, loss = set_lr(optimizers, step, steps), 0
            for last, (ids, labels, pixels, _) in zip([False] * (accumulate - 1) + [True], micro):
                ids, labels, pixels = (x.to(device, non_blocking=True) for x in (ids, labels, pixels))
                share = max(supervised, 1) / ranks  # DDP and FSDP2 take the mean over ranks: this makes it a sum
                with distributed.synced(wrapped, last):
                    if args.shard:
                        part = wrapped(ids, pixels, labels=labels, supervised=share)
                        part.backward()
                    else:
                        part = forward_backward_in(dtype, wrapped, ids, pixels, labels=labels, supervised=share)
                loss = loss + part.detach()
            norm = torch.nn.utils.get_total_norm([p.grad for p in wrapped.parameters() if p.grad is not None])
            take_step(optimizers)
            row = dict(step=step, lr=lr, supervised=supervised, tokens=tokens, images=images, bad=bad, cut=cut)
            records.add(row, loss, norm, [i for note in notes for i in note["ids"]])
            bar.update()
            save = (step + 1) % args.save_every == 0 and step + 1 < steps
            if device.type == "cpu" or save or step % 10 == 0 or step + 1 == steps:  # else the GPU need not be waited for
                records.flush(bar)
            if save:
                checkpoints.save(out, step + 1, wrapped, optimizers, args.keep)
    if args.shard:
        weights = distributed.whole_weights(wrapped)
        if rank == 0:
            with torch.device("meta"):
                model = Llava(model.config)
            model.load_state_dict(weights, assign=True)
    return model


def accumulation(recipe, ranks):
    """Micro-batches to a step on each rank."""
    accumulate, rest = divmod(recipe["batch"], recipe["per_gpu"] * ranks)
    if rest or not accumulate:
        raise ValueError(f"a step takes {recipe['batch']} samples, which {ranks} ranks x {recipe['per_gpu']} do not divide; "
                         f"change --per-gpu or --batch")
    return accumulate


class Records:
    """metrics.jsonl, a line a step. Losses stay on the device until they are asked for."""

    def __init__(self, out, recipe, model, ranks, rank, device):
        self.out, self.stage, self.ranks, self.rank, self.device = out, recipe["stage"], ranks, rank, device
        self.waiting, self.began = [], time.time()
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self.peak = next((flops for gpu, flops in plan.PEAKS.items() if gpu in name), None)
        if self.peak:
            self.skeleton = plan.skeleton(model.config, recipe["stage"])

    def add(self, row, loss, norm, ids):
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # a DTensor, of FSDP2
        self.waiting.append((row, loss, norm, ids))

    def flush(self, bar):
        """Writes what waits. FloatingPointError at a loss that is not finite, alike on all ranks."""
        if not self.waiting:
            return
        losses = distributed.mean_over_ranks(torch.stack([loss for _, loss, _, _ in self.waiting])).tolist()
        seconds = (time.time() - self.began) / len(self.waiting)
        with open(self.out / "metrics.jsonl", "a") as log:
            for (row, _, norm, ids), loss in zip(self.waiting, losses):
                if not math.isfinite(loss):
                    ids = [i for part in distributed.gather(ids) for i in part]
                    raise FloatingPointError(
                        f"the loss of step {row['step']} is {loss}, of the samples {', '.join(map(str, ids))}; the last "
                        f"good checkpoint is {list(checkpoints.checkpoints(self.out).values())[-1:] or 'none'}")
                row |= {"loss": loss, "gradient_norm": norm.item(), "tokens_per_second": row["tokens"] / seconds}
                if self.peak:
                    flops = plan.step_flops(self.skeleton, self.stage, row["tokens"], row["images"])
                    row["mfu"] = flops / seconds / (self.peak * self.ranks)
                row["memory_gib"] = (torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda"
                                     else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
                if self.rank == 0:
                    log.write(json.dumps(row) + "\n")
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
        self.waiting, self.began = [], time.time()


def end_by_signal(out, step, number, rank):
    if rank == 0:
        print(f"\nStopped after {step} steps, all saved in {out}. To go on, give the same command with --resume.")
    sys.exit(128 + number)


# ---------------------------------------------------------------------------------------------------------- one whole run

def run(args, rank, device):
    """A recipe from its data to its weights: args.out/mm_projector.bin after stage 1, args.out/llava after stage 2."""
    recipe, out = args.settled, args.out
    result = out / ("mm_projector.bin" if recipe["stage"] == 1 else "llava")
    settings = {name: getattr(args, name) for name in
                ("vision", "language", "init", "data", "images", "seed", "dtype", "answer_first", "text_only")}
    accumulation(recipe, distributed.ranks())
    began = bool(measured(out))
    if began:
        if not args.resume:
            raise ValueError(f"{out} holds a run already; go on with it by --resume, or name another folder with --out")
        before = json.loads((out / "config.json").read_text())
        now = json.loads(json.dumps({"recipe": recipe, "settings": settings}, default=str))
        changed = [f"{name} {before[part][name]} to {value}" for part in now for name, value in now[part].items()
                   if before[part].get(name) != value and name != "per_gpu"]
        if changed:
            raise ValueError(f"the run in {out} was begun otherwise, --resume cannot change {'; '.join(changed)}")
    if result.exists():
        return
    torch.manual_seed(args.seed)
    model, tokenizer = load_model(args, recipe)
    data = prepare_data(args, recipe, tokenizer, model.config, rank)
    if rank == 0 and not began:
        begin(out, recipe, settings)
    distributed.barrier()
    model = train(model, tokenizer, data, recipe, args, rank, device)
    if rank == 0:
        draw_loss([(f"stage {recipe['stage']}", [row["loss"] for row in measured(out)])], out / "loss.png")
        if recipe["stage"] == 1:
            weights = {f"model.mm_projector.{name}": p.cpu() for name, p in model.mm_projector.state_dict().items()}
            torch.save(weights, out / "mm_projector.tmp")
            os.replace(out / "mm_projector.tmp", result)
        else:
            model.drop_unused_blocks()
            save_llava(model.to("cpu", torch.bfloat16), tokenizer, result)
    distributed.barrier()


def load_model(args, recipe):
    """CLIP, LLaMA and a projector, new or from the run of stage 1 in args.init; or a whole LLaVA from there."""
    init = args.init
    if init and not (init / "mm_projector.bin").exists():
        whole = init / "llava" if (init / "llava").exists() else init
        model, tokenizer = load_llava(whole, vision=args.vision, device="cpu")
    else:
        projector = init / "mm_projector.bin" if init else recipe["projector"]
        model, tokenizer = load_llava(vision=args.vision, language=args.language, projector=projector, device="cpu")
    template = recipe["template"] if recipe["stage"] == 2 else model.config.template
    prompt_format = ("QCM-ALE" if args.answer_first else "QCM-LEA") if args.data.is_dir() else ""
    model.config = replace(model.config, image_aspect_ratio=recipe["aspect"], template=template, prompt_format=prompt_format)
    return model, tokenizer


def prepare_data(args, recipe, tokenizer, config, rank):
    path, images = args.data, args.images
    if path.is_dir():  # ScienceQA's own folder
        path, images = args.out / "scienceqa.json", scienceqa.image_folder(path, "train")
        if rank == 0:
            samples = scienceqa.convert(args.data, "train", config.prompt_format, text_only=args.text_only)
            scienceqa.check_images(samples, images)
            text = json.dumps(samples)
            if not path.exists() or path.read_text() != text:  # a file written anew would want a new index
                write(path, text)
    if rank == 0:  # one process makes the index, the others find it
        index_of(path, args.out, words_of)
    distributed.barrier()
    return LlavaData(path, images, tokenizer, config, recipe["template"], recipe["max_length"], args.out)


class Checked(Dataset):
    """item -> why the sample cannot be used, or None."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        sample = self.data.sample(index)
        name = sample.get("id", index) if isinstance(sample, dict) else index
        try:
            cut = self.data.prepare(sample)["cut"]
            return f"{name}: too long, cut after {self.data.max_length} tokens" if cut else None
        except (OSError, ValueError) as error:
            return f"{name}: {error}"


def check_data(data, workers):
    """Reads every sample once and prints what is wrong with which; returns how many are."""
    bad = 0
    for line in tqdm(DataLoader(Checked(data), batch_size=None, num_workers=workers), desc="samples"):
        if line:
            bad += 1
            tqdm.write(line, file=sys.stdout)
    print(f"{len(data)} samples, {bad} of them named above")
    return bad


def describe(args, recipe, config):
    """What a recipe would train, freeze, read and write."""
    model = plan.skeleton(config, recipe["stage"])
    parts = {"CLIP": model.vision_tower, "projector": model.mm_projector, "language model": model.language_model}
    for name, part in parts.items():
        print(f"{'trained' if plan.count(part, trained=True) else 'frozen':8} {name:15} {plan.count(part):>15,}")
    for name in ("vision", "language", "init", "data", "images"):
        print(f"{'reads':8} --{name:13} {getattr(args, name)}")
    print(f"{'writes':8} {args.out}/: config.json, metrics.jsonl, loss.png, checkpoint-N, "
          f"{'mm_projector.bin' if recipe['stage'] == 1 else 'llava'}")
    for name, value in recipe.items():
        print(f"{name:24} {value}")


# --------------------------------------------------------------------------------------------------------- the miniature

def miniature(args, rank, device):
    """The whole of LLaVA at the size of a laptop, from the two shipped backbones; its stage 2 may be ScienceQA."""
    began, world, science = time.time(), args.out / "world", args.recipe == "toy-scienceqa"
    if measured(args.out / "pretrain") and not args.resume:
        raise ValueError(f"{args.out} holds a run already; go on with it by --resume, or name another folder with --out")
    if rank == 0:
        draw_world(world, args.scenes, args.heldout, args.seed, science)
    distributed.barrier()
    last = ({"data": world / "scienceqa", "settled": settle(args, "toy-scienceqa")} if science else
            {"data": world / "finetune.json", "images": world / "train", "settled": settle(args, "toy-finetune")})
    first = {"out": args.out / "pretrain", "data": world / "pretrain.json", "images": world / "train",
             "settled": settle(args, "toy-pretrain")}
    for stage in (first, last | {"init": args.out / "pretrain"}):
        run(argparse.Namespace(**vars(args) | stage), rank, device)
    if rank == 0:
        draw_loss([(f"stage {k}", [row["loss"] for row in measured(folder)])
                   for k, folder in ((1, args.out / "pretrain"), (2, args.out))], args.out / "loss.png")
        if not science:
            model, tokenizer = load_llava(args.out / "llava", device=device, dtype=torch.float32)
            report(model, tokenizer, world, args.out, args.per_type, args.seed)
        then = "Score it:\n    python eval_scienceqa.py" if science else "Talk with it:\n    python chat.py"
        print(f"\nAll in {(time.time() - began) / 60:.1f} minutes. The losses are in {args.out / 'loss.png'}. {then} "
              f"--model {args.out / 'llava'}")


# ------------------------------------------------------------------------------------------------------ the command line

def settle(args, name):
    """The recipe with what the command line changes in it."""
    changes = {key: getattr(args, key) for key in ("lr", "batch", "per_gpu", "epochs", "max_length", "checkpointing")}
    return RECIPES[name] | {key: value for key, value in changes.items() if value is not None}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--recipe", choices=RECIPES, help="which training (default: the whole miniature)")
    for name, text in (("vision", "folder of a CLIP"), ("language", "folder of a Vicuna, of any Llama"),
                       ("init", "run of stage 1, or a whole LLaVA, to begin with"),
                       ("data", "file of LLaVA-JSON, or ScienceQA's folder"), ("images", "folder of its images")):
        parser.add_argument(f"--{name}", type=Path, help=text)
    parser.add_argument("--answer-first", action=flag, default=False, help="ScienceQA: answer, then reason (section 5.2)")
    parser.add_argument("--text-only", action=flag, default=False, help="ScienceQA: leave out the questions with an image")
    parser.add_argument("--out", type=Path, default=Path("runs/toy"), help="folder of the run")
    parser.add_argument("--resume", action=flag, default=False, help="go on with the run in --out")
    parser.add_argument("--print", action=flag, default=False, help="only show what it trains, freezes, reads, writes")
    parser.add_argument("--plan", action=flag, default=False, help="only work out memory, arithmetic and hours")
    parser.add_argument("--check-data", action=flag, default=False, help="only read every sample and name the bad ones")
    parser.add_argument("--gpus", type=int, default=8, help="for --plan")
    parser.add_argument("--mfu", type=float, default=0.45, help="for --plan: the part of the peak that is reached")
    parser.add_argument("--batch", type=int, help="samples per step, over all GPUs (default: the recipe's, as all below)")
    parser.add_argument("--per-gpu", type=int, help="samples that one GPU takes at a time; the rest is accumulated")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--max-length", type=int, help="tokens, image included, where a sample is cut")
    parser.add_argument("--checkpointing", action=flag, default=None, help="compute activations again rather than keep them")
    parser.add_argument("--shard", action=flag, default=None, help="FSDP2 (default: stage 2 of the real recipes), else DDP")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16",
                        help="to compute in; weights are fp32")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...")
    parser.add_argument("--workers", type=int, default=None, help="processes that load data (default: 4, the miniature 0)")
    parser.add_argument("--save-every", type=int, default=500, help="steps from one checkpoint to the next")
    parser.add_argument("--keep", type=int, default=2, help="checkpoints kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=4200, help="miniature: training scenes; more teach better")
    parser.add_argument("--heldout", type=int, default=400, help="miniature: held-out scenes")
    parser.add_argument("--per-type", type=int, default=110, help="miniature: held-out questions of each type")
    args = parser.parse_args()
    toy = args.recipe is None or args.recipe.startswith("toy-")
    if toy:
        args.vision, args.language = args.vision or TOY / "clip", args.language or TOY / "vicuna"
    args.miniature = args.recipe is None or args.recipe == "toy-scienceqa" and not (args.data or args.init)
    args.workers = (0 if toy else 4) if args.workers is None else args.workers
    args.settled = settle(args, args.recipe or "toy-finetune")
    if args.shard is None:
        args.shard = not toy and args.settled["stage"] == 2
    return parser, args


def check_arguments(args):
    for name in ("batch", "per_gpu", "epochs", "max_length", "save_every", "keep", "gpus", "scenes", "heldout",
                 "per_type", "lr"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise ValueError(f"--{name.replace('_', '-')} must be positive, not {value}")
    if args.workers < 0 or not 0 < args.mfu <= 1:
        raise ValueError("--workers is 0 or more, --mfu above 0 and at most 1")
    if args.shard and args.settled["muon_lr"]:
        raise ValueError("Muon needs whole matrices: the toy recipes run with --no-shard")
    if args.miniature and (args.data or args.images or args.init):
        raise ValueError("the miniature draws its own data: --data, --images and --init go with a --recipe")
    if not args.miniature and not (args.print or args.plan):
        missing = ["--data"] * (args.data is None)
        missing += ["--images"] * (not args.images and not (args.data and args.data.is_dir()))
        whole = args.init and not (args.init / "mm_projector.bin").exists()
        missing += [f"--{name}" for name in ("vision", "language") if getattr(args, name) is None and not whole]
        if missing:
            raise ValueError(f"--recipe {args.recipe} needs {' and '.join(missing)}")


def main():
    parser, args = arguments()
    rank = int(os.environ.get("RANK", 0))
    try:
        check_arguments(args)
        if args.print or args.plan:
            recipe = args.settled
            config = load_config(args.vision, args.language, recipe["projector"], recipe["image_size"])
            if args.print:
                return describe(args, recipe, config)
            return print(plan.report(config, recipe, recipe["samples"], recipe["mean"], args.gpus, recipe["per_gpu"],
                                     args.shard, recipe["checkpointing"], 2 if args.dtype == "bfloat16" else 4, args.mfu))
        if args.check_data:
            model, tokenizer = load_model(args, args.settled)
            sys.exit(1 if check_data(prepare_data(args, args.settled, tokenizer, model.config, 0), args.workers) else 0)
        rank, _, device = distributed.set_up(args.device, alone=not args.shard)
        (miniature if args.miniature else run)(args, rank, device)
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n" if rank == 0 else "")
    except KeyboardInterrupt:
        parser.exit(130, "\nstopped\n" if rank == 0 else "")
    except FloatingPointError as error:
        parser.exit(1, f"error: {error}\n" if rank == 0 else "")


if __name__ == "__main__":
    main()
