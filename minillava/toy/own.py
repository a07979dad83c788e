"""Two small sets of one's own pictures, to try `train.py --recipe own` with, and their score.

    python -m minillava.toy.own pink --out pink                # 300 pictures, a metadata.jsonl
    python -m minillava.toy.own pink --out pink-new --pictures 110 --split val
    python -m minillava.toy.own things --out things            # ten: a house, a cat, a car ...
    python -m minillava.toy.own score --model DIR --data pink-new

The miniature has never seen pink, nor anything but its four shapes. Pictures of another split and
seed than those that are learned from show other scenes.
"""
import argparse
import json
import random
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from minillava.checkpoint import load_llava
from minillava.files import write
from minillava.generate import generate
from minillava.images import load_image
from minillava.terminal import exit_with, printable
from minillava.toy import world
from minillava.toy.annotations import as_fractions
from minillava.toy.objects import read
from minillava.toy.questions import QUESTIONS
from minillava.toy.things import THINGS, draw_thing
from minillava.training.samples import folder_samples

PINK = (240, 130, 185)


# ------------------------------------------------------------------------------ scenes with pink

def pink_scene(rng, split):
    """A scene of the split, one or two of whose shapes are pink."""
    scene = world.make_scene(rng, split)
    for n in rng.sample(range(len(scene)), min(len(scene), rng.choice((1, 1, 2)))):
        name, box = scene[n]
        scene[n] = (f"pink {name.split()[1]}", box)
    return scene


def pink_rows(rng, scene, split):
    """[(question, answer)] of one picture: six about pink and four about the rest, of all kinds.

    To be scored with ("val"): one about pink that yes or no does not answer.
    """
    things = read(as_fractions(scene))
    pink, others = [], []
    for kind, ask in QUESTIONS.items():
        for _ in range(5):
            pair = ask(things, rng)
            about_pink = pair and "pink" in " ".join(pair)
            if pair and not (split == "val" and (kind == "exists" or not about_pink)):
                (pink if about_pink else others).append(pair)
                break
    if split == "val":
        return rng.sample(pink, min(1, len(pink)))
    return rng.sample(pink, min(6, len(pink))) + rng.sample(others, min(4, len(others)))


def draw_pink(folder, pictures, split, seed):
    rng = random.Random(f"pink {split} {seed}")
    world.COLORS["pink"] = PINK  # for as long as it is drawn
    rows = []
    for n in range(pictures):
        pairs = []
        while not pairs:
            scene = pink_scene(rng, split)
            pairs = pink_rows(rng, scene, split)
        name = f"{n:04}.png"
        world.draw(scene, rng).save(folder / name)
        rows += [(name, *pair) for pair in pairs]
    del world.COLORS["pink"]
    return rows


# -------------------------------------------------------------------------- things that are none

def draw_things(folder, pictures, split, seed):
    """Each kind as often as the others, in another place and colour each time."""
    rng = random.Random(f"things {split} {seed}")
    rows = []
    for n in range(pictures):
        thing = list(THINGS)[n % len(THINGS)]
        name = f"{n:04}.png"
        draw_thing(thing, rng).save(folder / name)
        rows.append((name, "What does the image show?", f"The image shows a {thing}."))
    return rows


# ----------------------------------------------------------------------------------- the command

def score(model, data, base=None, batch=64):
    """Prints how many answers of a folder of pictures are exactly right, and the wrong ones."""
    model, tokenizer = load_llava(model, base=base, dtype="float32")
    rows = []
    for sample in folder_samples(data):
        texts = [turn["value"].removeprefix("<image>\n") for turn in sample["conversations"]]
        rows += [(sample["image"], *pair) for pair in zip(texts[::2], texts[1::2])]

    wrong = Counter()
    for start in tqdm(range(0, len(rows), batch), desc="answers"):
        part = rows[start : start + batch]
        images = [load_image(data / name) for name, _, _ in part]
        said = generate(model, tokenizer, [question for _, question, _ in part], images,
                        max_new_tokens=96)
        for (_, question, answer), text in zip(part, said):
            if text != answer:
                wrong[f"{question}  {text}  (right: {answer})"] += 1
    right = len(rows) - wrong.total()
    for line, _ in wrong.most_common(5):
        print(f"  {printable(line, keep='')}")
    print(f"{right} of {len(rows)} whole answers exactly right: {100 * right / len(rows):.1f} %")


def draw(kind, out, pictures, split, seed):
    out.mkdir(parents=True, exist_ok=True)
    drawing = {"pink": draw_pink, "things": draw_things}[kind]
    rows = drawing(out, pictures, split, seed)
    lines = [json.dumps({"file_name": name, "question": question, "answer": answer}) + "\n"
             for name, question, answer in rows]
    write(out / "metadata.jsonl", "".join(lines))
    print(f"{pictures} pictures and {len(rows)} questions in {out}")


def main():
    parser = argparse.ArgumentParser(prog="python -m minillava.toy.own", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pink", "things", "score"))
    parser.add_argument("--out", type=Path, default=Path("own"))
    parser.add_argument("--pictures", type=int, help="(default: 300 of pink, 10 things)")
    parser.add_argument("--split", choices=("train", "val"), default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, help="for score (default: the shipped miniature)")
    parser.add_argument("--base", type=Path, help="for score: the base of an adapter")
    parser.add_argument("--data", type=Path, help="for score: a folder of pictures")
    args = parser.parse_args()
    try:
        if args.what != "score":
            pictures = args.pictures or {"pink": 300, "things": 10}[args.what]
            draw(args.what, args.out, pictures, args.split, args.seed)
        elif args.data is None:
            raise ValueError("score needs --data, a folder of pictures with their metadata")
        else:
            score(args.model, args.data, args.base)
    except (OSError, ValueError) as error:
        exit_with(error)


if __name__ == "__main__":
    main()
