"""The miniature as a whole: the data its two stages learn from, and what it has learned of it.

`train.py` draws the data, trains both stages and prints the held-out table.
"""
import json
import random

from tqdm import tqdm

from minillava.conversation import human_turn
from minillava.files import read_json, write
from minillava.generate import generate, stream
from minillava.images import load_image
from minillava.instruct.symbols import read_symbols
from minillava.toy.annotations import make_world
from minillava.toy.instruct import FINETUNE, PRETRAIN, SCIENCE_PRETRAIN, toy_samples
from minillava.toy.questions import heldout_questions
from minillava.toy.scienceqa import make_scienceqa
from minillava.toy.teacher import teach


def draw_world(world, scenes, heldout, seed, science=False):
    """Draws the folder `world`: pictures and annotations (train, val), a file of samples per stage.

    world/pretrain.json is for stage 1, world/finetune.json or the folder world/scienceqa for
    stage 2. A world that is there already stays; ValueError if it has another number of scenes.
    """
    if (world / "pretrain.json").exists():
        refuse_other_world(world, scenes, heldout)
        return
    print(f"Drawing the toy world: {scenes} scenes to learn from "
          f"and {heldout} held out, in {world}")
    make_world(world, "train", scenes, seed)
    make_world(world, "val", heldout, seed)

    symbols = read_symbols(world / "captions_train.json", world / "instances_train.json")
    if science:
        make_scienceqa(world / "scienceqa", {"train": 2 * scenes}, seed)
    else:
        samples = toy_samples(symbols, FINETUNE, seed, world / "train")
        write(world / "finetune.json", json.dumps(samples))

    # the last file to be written: where it is, all others are
    kinds = SCIENCE_PRETRAIN if science else PRETRAIN
    samples = toy_samples(symbols, kinds, seed, world / "train")
    write(world / "pretrain.json", json.dumps(samples))


def refuse_other_world(world, scenes, heldout):
    for split, flag, asked in (("train", "--scenes", scenes), ("val", "--heldout", heldout)):
        there = len(read_json(world / f"captions_{split}.json")["images"])
        if there != asked:
            raise ValueError(f"{world} was drawn with {flag} {there}: resume with that, "
                             f"or name another folder with --out")


def report(model, tokenizer, world, out, per_type, seed):
    """Prints the held-out table, kept in out/heldout.json, and a chat about a held-out scene."""
    heldout = read_symbols(world / "captions_val.json", world / "instances_val.json")
    questions = heldout_questions(heldout, per_type, seed)
    pictures = {name: load_image(world / "val" / name) for name in heldout}

    table = heldout_table(model, tokenizer, questions, pictures)
    print_table(table, questions)
    write(out / "heldout.json", json.dumps(table, indent=1))

    name = next(iter(pictures))
    print(f"\nA chat about {world / 'val' / name}")
    sample_chat(model, tokenizer, pictures[name], heldout[name], seed)


def heldout_table(model, tokenizer, questions, pictures):
    """-> {column: {type of question: share}}: its picture, and two controls, none and another's.

    questions: of `heldout_questions`; pictures: {name: PIL image}.
    """
    names = list(pictures)
    own = [pictures[question["image"]] for question in questions]
    none = [None] * len(questions)
    other = [pictures[names[names.index(question["image"]) - 1]] for question in questions]

    table = {
        "its_picture": score(model, tokenizer, questions, own, "held-out questions"),
        "no_picture": score(model, tokenizer, questions, none, "control: no picture"),
        "another_picture": score(model, tokenizer, questions, other, "control: another picture"),
    }
    for column in table.values():
        column["all"] = sum(column.values()) / len(column)  # as many questions of each type
    return table


def score(model, tokenizer, questions, images, desc, batch=128):
    """-> {type: share of questions whose whole answer is exactly right}.

    images: a PIL image or None per question.
    """
    # rows of a batch end together
    order = sorted(range(len(questions)), key=lambda i: len(questions[i]["answer"]))
    right = {}
    for start in tqdm(range(0, len(order), batch), desc=desc):
        rows = order[start : start + batch]
        prompts = [questions[i]["question"] for i in rows]
        answers = generate(model, tokenizer, prompts, [images[i] for i in rows], max_new_tokens=96)
        for i, answer in zip(rows, answers):
            right.setdefault(questions[i]["type"], []).append(answer == questions[i]["answer"])
    return {kind: sum(hits) / len(hits) for kind, hits in sorted(right.items())}


def print_table(table, questions):
    scenes = len({question["image"] for question in questions})
    print(f"\nWhole answers exactly right, "
          f"of {len(questions)} questions on {scenes} held-out scenes")
    print(f"{'%':12}{'its picture':>12}{'no picture':>12}{'another picture':>17}")
    for kind in table["its_picture"]:
        own, none, other = (100 * table[column][kind] for column in table)
        print(f"{kind:12}{own:12.1f}{none:12.1f}{other:17.1f}")


def sample_chat(model, tokenizer, picture, symbols, seed):
    """A dialogue of three turns; symbols: captions and boxes, from which the toy teacher asks."""
    turns = []
    for kind in ("detail", "conversation", "reasoning"):
        question, _ = teach(kind, *symbols, random.Random(seed))[0]
        turns.append(human_turn(question, image=not turns))
        answer = "".join(stream(model, tokenizer, turns, picture)).strip()
        turns.append(("gpt", answer))
        print(f"  you>   {question}\n  llava> {answer}")
