"""Two-stage training of LLaVA (section 4.2): first the projector alone, then projector and language model.

    python train.py                      # the whole miniature: toy world, stage 1, stage 2, held-out scores
    python train.py --out runs/long --scenes 16000      # as the shipped one: about 13 minutes
    python chat.py --model runs/toy/llava   # talk with the result
"""
import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader
from tqdm import tqdm

from minillava import toy_world
from minillava.checkpoint import TOY, load_llava, save_llava
from minillava.conversation import human_turn
from minillava.data import LlavaData, collate, grouped_order
from minillava.generate import generate, stream
from minillava.optim import forward_in, make_optimizers, set_lr, take_step
from minillava.vision import load_image

RECIPES = {
    "toy-pretrain": dict(stage=1, template="plain", lr=2e-3, muon_lr=None, batch=32, epochs=1),
    "toy-finetune": dict(stage=2, template="vicuna_v1", lr=1e-3, muon_lr=0.007, batch=16, epochs=1),
}


def train(model, data, recipe, seed, log):
    """One stage. Appends {"step", "loss", "lr"} to the open file `log` and returns the losses."""
    model.freeze_for(recipe["stage"])
    generator = torch.Generator().manual_seed(seed)
    order = [i for _ in range(recipe["epochs"]) for i in grouped_order(data.lengths(), recipe["batch"], 1, generator)]
    batches = DataLoader(data, batch_size=recipe["batch"], sampler=order, collate_fn=collate)
    optimizers, losses = make_optimizers(model, recipe["lr"], recipe["muon_lr"]), []
    bar = tqdm(batches, desc=f"stage {recipe['stage']}")
    for step, (input_ids, labels, pixels) in enumerate(bar):
        set_lr(optimizers, step, len(batches))
        loss = forward_in(torch.bfloat16, model, input_ids, pixels, labels=labels)
        loss.backward()
        take_step(optimizers)
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
        log.write(json.dumps({"stage": recipe["stage"], "step": step, "loss": losses[-1]}) + "\n")
    return losses


def score(model, tokenizer, questions, images, desc, batch=128):
    """-> {type: share of questions whose whole answer is exactly right}; images: one PIL image or None per question."""
    right = {}
    order = sorted(range(len(questions)), key=lambda i: len(questions[i]["answer"]))  # rows of a batch end together
    for start in tqdm(range(0, len(order), batch), desc=desc):
        rows = order[start : start + batch]
        prompts = [questions[i]["question"] for i in rows]
        answers = generate(model, tokenizer, prompts, [images[i] for i in rows], max_new_tokens=96)
        for i, answer in zip(rows, answers):
            right.setdefault(questions[i]["type"], []).append(answer == questions[i]["answer"])
    return {kind: sum(hits) / len(hits) for kind, hits in sorted(right.items())}


def draw_loss(stages, path):
    """loss.png: the smoothed loss of each stage, one after the other on a log scale; stages: [(name, losses)]."""
    W, H, M = 720, 360, 46
    image = Image.new("RGB", (W, H), "white")
    pen, curves = ImageDraw.Draw(image), []
    for name, losses in stages:
        smooth, mean = [], losses[0]
        for loss in losses:
            mean = 0.95 * mean + 0.05 * loss
            smooth.append(max(mean, 1e-6))
        curves.append((name, smooth))
    low, high = (math.log(pick(pick(curve) for _, curve in curves)) for pick in (min, max))
    steps, start = sum(len(curve) for _, curve in curves), 0
    for k in range(5):
        y = M + (H - 2 * M) * k / 4
        pen.line((M, y, W - M, y), "#dddddd")
        pen.text((6, y - 6), f"{math.exp(high + (low - high) * k / 4):.3f}", "black")
    for row, ((name, curve), color) in enumerate(zip(curves, ("#1f77b4", "#d62728"))):
        points = [(M + (W - 2 * M) * (start + i) / steps,
                   M + (H - 2 * M) * (high - math.log(loss)) / max(high - low, 1e-6)) for i, loss in enumerate(curve)]
        pen.line(points, color, width=2)
        pen.text((W - 240, 8 + 16 * row), f"{name}: {curve[-1]:.3f} after {len(curve)} steps", color)
        start += len(curve)
    pen.text((W // 2 - 40, H - 24), f"{steps} steps", "black")
    image.save(path)


def miniature(args):
    """The whole of LLaVA at the size of a laptop, from the two shipped backbones."""
    began, world = time.time(), args.out / "world"
    print(f"Drawing the toy world: {args.scenes} scenes to learn from and {args.heldout} held out, in {world}")
    for split, scenes in (("train", args.scenes), ("val", args.heldout)):
        toy_world.make_world(world, split, scenes, args.seed)
    symbols = toy_world.read_world(world, "train")
    for name, kinds in (("pretrain", {"brief": 1.0}),
                        ("finetune", {"conversation": 1.0, "detail": 0.4, "reasoning": 1.0, "text": 0.05})):
        (world / f"{name}.json").write_text(json.dumps(toy_world.llava_json(symbols, kinds, args.seed)))

    torch.manual_seed(args.seed)
    model, tokenizer = load_llava(vision=TOY / "clip", language=TOY / "vicuna", projector="mlp2x_gelu", device="cpu",
                                  dtype=torch.float32)
    stages = []
    with open(args.out / "metrics.jsonl", "w") as log:
        for name in ("pretrain", "finetune"):
            recipe = RECIPES[f"toy-{name}"]
            data = LlavaData(world / f"{name}.json", world / "train", tokenizer, model.config, recipe["template"])
            stages.append((f"stage {recipe['stage']}", train(model, data, recipe, args.seed, log)))
    draw_loss(stages, args.out / "loss.png")
    model = model.bfloat16()
    save_llava(model, tokenizer, args.out / "llava")
    report(model.float(), tokenizer, world, args)
    print(f"\nAll in {(time.time() - began) / 60:.1f} minutes. The losses are in {args.out / 'loss.png'}. Talk with it:\n"
          f"    python chat.py --model {args.out / 'llava'}")


def report(model, tokenizer, world, args):
    """Held-out accuracy per type of question beside two controls, no picture and another scene's; then a sample chat."""
    heldout = toy_world.read_world(world, "val")
    questions = toy_world.heldout_questions(heldout, args.per_type, args.seed)
    pictures = {name: load_image(world / "val" / name) for name in heldout}
    names = list(pictures)
    shown = [pictures[q["image"]] for q in questions]
    others = [pictures[names[names.index(q["image"]) - 1]] for q in questions]
    columns = [score(model, tokenizer, questions, shown, "held-out questions"),
               score(model, tokenizer, questions, [None] * len(questions), "control: no picture"),
               score(model, tokenizer, questions, others, "control: another picture")]
    for column in columns:
        column["all"] = sum(column.values()) / len(column)  # as many questions of each type
    scenes = len({q["image"] for q in questions})
    print(f"\nWhole answers exactly right, of {len(questions)} questions on {scenes} held-out scenes")
    print(f"{'%':12}{'its picture':>12}{'no picture':>12}{'another picture':>17}")
    for kind in columns[0]:
        print(f"{kind:12}" + "".join(f"{100 * column[kind]:{width}.1f}" for column, width in zip(columns, (12, 12, 17))))
    table = dict(zip(("its_picture", "no_picture", "another_picture"), columns))
    (args.out / "heldout.json").write_text(json.dumps(table, indent=1))

    print(f"\nA chat about {world / 'val' / names[0]}")
    turns = []
    for kind in ("detail", "conversation", "reasoning"):
        question, _ = toy_world.teach(kind, *heldout[names[0]], random.Random(args.seed))[0]
        turns.append(human_turn(question, image=not turns))
        turns.append(("gpt", "".join(stream(model, tokenizer, turns, pictures[names[0]])).strip()))
        print(f"  you>   {question}\n  llava> {turns[-1][1]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/toy"), help="folder of the run")
    parser.add_argument("--scenes", type=int, default=5600, help="training scenes: more take longer and teach better")
    parser.add_argument("--heldout", type=int, default=400, help="held-out scenes")
    parser.add_argument("--per-type", type=int, default=110, help="held-out questions of each type")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        if (args.out / "metrics.jsonl").exists():
            raise ValueError(f"{args.out} holds a run already; name another folder with --out, or delete that one")
        if min(args.scenes, args.heldout, args.per_type) < 1:
            raise ValueError("--scenes, --heldout and --per-type are at least 1")
        miniature(args)
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
