"""Two small sets of one's own pictures, to try `train.py --recipe own` with, and their score.

    python -m minillava.toy.own pink --out pink                # 300 pictures, a metadata.jsonl
    python -m minillava.toy.own pink --out pink-new --pictures 110 --split val
    python -m minillava.toy.own things --out things            # ten: a house, a cat, a car ...
    python -m minillava.toy.own score --model DIR --data pink-new

The miniature has never seen pink, nor anything but its four shapes. Pictures of another split and
seed than those that are learned from show other scenes.
"""
import random
from collections import Counter
from pathlib import Path

from PIL import ImageOps
from tqdm import tqdm

from minillava.checkpoint import load_llava
from minillava.files import write_jsonl
from minillava.images import load_image
from minillava.terminal import command_parser, errors_in_one_line, printable
from minillava.toy import world
from minillava.toy.annotations import as_fractions
from minillava.toy.miniature import answers_to
from minillava.toy.objects import read
from minillava.toy.questions import CONVERSATION, QUESTIONS, REASONING
from minillava.toy.things import THINGS, draw_thing
from minillava.training.samples import folder_samples

PINK = (255, 20, 147)  # deep pink: as strong as the colours of the world
COUNTING = ("count", "compare", "remove", "most")  # the kinds that are hard, hence asked more often


# ------------------------------------------------------------------------------ scenes with pink

def draw_pink(folder, pictures, split, seed):
    """Draws pictures to the folder -> [(file name, question, answer)] about them.

    Those to learn from are few, hence each is there twice: as it is, and mirrored.
    """
    rng = random.Random(f"pink {split} {seed}")
    world.COLORS["pink"] = PINK  # for as long as it is drawn
    drawn = []  # (file name, picture, parts: lists of (question, answer))
    for n in range(pictures):
        scene = pink_scene(rng, split)
        parts = [[pink_question(rng, scene)]] if split == "val" else pink_parts(rng, scene)
        picture = world.draw(scene, rng)
        drawn.append((f"{n:04}.png", picture, parts))
        if split == "train":
            parts = pink_parts(rng, mirrored(scene))
            drawn.append((f"{n:04}-mirrored.png", ImageOps.mirror(picture), parts))
    del world.COLORS["pink"]

    for name, picture, _ in drawn:
        picture.save(folder / name)
    # rows that follow each other are one conversation: the parts of a picture stand apart
    return [(name, *pair) for number in range(len(drawn[0][2]))
            for name, _, parts in drawn for pair in parts[number]]


def pink_scene(rng, split):
    """A scene of four or five shapes, any number of them pink: there is much to learn from it.

    One to be scored with ("val") has one to five shapes, of which one or two are pink.
    """
    while True:
        scene = world.make_scene(rng, split)
        most = len(scene) if split == "train" else min(2, len(scene))
        for n in rng.sample(range(len(scene)), rng.randint(1, most)):
            name, box = scene[n]
            scene[n] = (f"pink {name.split()[1]}", box)
        wanted = split == "val" or len(scene) >= 4
        if wanted and world.split_of([name for name, _ in scene]) == split:
            return scene


def mirrored(scene):
    """The scene seen from behind: each of the world's shapes is its own mirror image."""
    return [(name, [world.SIDE - x2, y1, world.SIDE - x1, y2]) for name, (x1, y1, x2, y2) in scene]


def pink_parts(rng, scene):
    """A description of a picture, and eight times some questions -> 9 lists of (question, answer).

    Each becomes a conversation of its own, with few questions of a kind: later answers could be
    read from earlier ones, and the picture need not be looked at.
    """
    things = read(as_fractions(scene))
    pairs = []
    for kind, ask in (CONVERSATION | REASONING).items():
        tries = dict.fromkeys(ask(things, rng) for _ in range(200))
        pink = [pair for pair in tries if pair and is_pink(pair)]
        others = [pair for pair in tries if pair and not is_pink(pair)]
        if kind in COUNTING:  # the same pair up to three times, in other conversations
            pairs += (3 * pink)[:6] + others[:2]
        else:
            pairs += pink[:3] + others[:1]

    description = [QUESTIONS["detail"](things, rng)]
    parts = [pairs[n::8] for n in range(8)]
    return [description, *(rng.sample(part, len(part)) for part in parts)]


def pink_question(rng, scene):
    """One question about something pink, that yes or no does not answer -> (question, answer)."""
    things = read(as_fractions(scene))
    pairs = []
    for kind, ask in QUESTIONS.items():
        tries = [ask(things, rng) for _ in range(5)]
        pairs += [pair for pair in tries if pair and is_pink(pair) and kind != "exists"][:1]
    return rng.choice(pairs)


def is_pink(pair):
    return "pink" in " ".join(pair)


# -------------------------------------------------------------------------- things that are none

def draw_things(folder, pictures, split, seed):
    """As draw_pink; each kind as often as the others, in another place and colour each time."""
    rng = random.Random(f"things {split} {seed}")
    for n in range(pictures):
        thing = list(THINGS)[n % len(THINGS)]
        name = f"{n:04}.png"
        draw_thing(thing, rng).save(folder / name)
        yield name, "What does the image show?", f"The image shows a {thing}."


# ----------------------------------------------------------------------------------- the command

def score(model, data, base=None):
    """Prints how many answers of a folder of pictures are exactly right, and the wrong ones."""
    model, tokenizer = load_llava(model, base=base, dtype="float32")
    rows = []
    for sample in folder_samples(data):
        texts = [turn["value"].removeprefix("<image>\n") for turn in sample["conversations"]]
        rows += [{"image": sample["image"], "question": question, "answer": answer}
                 for question, answer in zip(texts[::2], texts[1::2])]

    said = []
    for start in tqdm(range(0, len(rows), 64), desc="answers"):
        part = rows[start : start + 64]
        images = [load_image(data / row["image"]) for row in part]
        said += answers_to(model, tokenizer, part, images)
    wrong = Counter(f"{row['question']}  {text}  (right: {row['answer']})"
                    for row, text in zip(rows, said) if text != row["answer"])
    right = len(rows) - wrong.total()
    for line, _ in wrong.most_common(5):
        print(f"  {printable(line, keep='')}")
    print(f"{right} of {len(rows)} whole answers exactly right: {100 * right / len(rows):.1f} %")


def draw(kind, out, pictures, split, seed):
    out.mkdir(parents=True, exist_ok=True)
    drawing = {"pink": draw_pink, "things": draw_things}[kind]
    rows = [{"file_name": name, "question": question, "answer": answer}
            for name, question, answer in drawing(out, pictures, split, seed)]
    write_jsonl(out / "metadata.jsonl", rows)
    drawn = {row["file_name"] for row in rows}
    print(f"{len(drawn)} pictures and {len(rows)} questions in {out}")


def main():
    parser = command_parser("toy.own", __doc__)
    parser.add_argument("what", choices=("pink", "things", "score"))
    parser.add_argument("--out", type=Path, default=Path("own"))
    parser.add_argument("--pictures", type=int, help="(default: 300 of pink, 10 things)")
    parser.add_argument("--split", choices=("train", "val"), default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, help="for score (default: the shipped miniature)")
    parser.add_argument("--base", type=Path, help="for score: the base of an adapter")
    parser.add_argument("--data", type=Path, help="for score: a folder of pictures")
    args = parser.parse_args()
    with errors_in_one_line():
        if args.pictures is not None and args.pictures < 1:
            raise ValueError(f"--pictures is 1 or more, not {args.pictures}")
        if args.what != "score":
            pictures = args.pictures or {"pink": 300, "things": 10}[args.what]
            draw(args.what, args.out, pictures, args.split, args.seed)
        elif args.data is None:
            raise ValueError("score needs --data, a folder of pictures with their metadata")
        else:
            score(args.model, args.data, args.base)


if __name__ == "__main__":
    main()
