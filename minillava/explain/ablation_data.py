"""The data of the ablations for one seed: a toy world, its samples in several mixes, questions."""
import json
from collections import Counter

from PIL import Image

from minillava.explain.ablation_rows import MIXES
from minillava.files import write
from minillava.images import load_image
from minillava.instruct.symbols import choose
from minillava.toy.annotations import make_world, symbols_of
from minillava.toy.instruct import toy_samples
from minillava.toy.questions import CONVERSATION, REASONING, heldout_questions
from minillava.toy.scienceqa import make_scienceqa
from minillava.toy.short_answers import short_answer, short_samples, wished
from minillava.toy.teacher import ask_carelessly
from minillava.toy.world import SIDE

# questions of each type of a kind, so that a third of all is of each kind, as in LLaVA-Bench
SHARES = dict.fromkeys(CONVERSATION, 1 / 8) | {"detail": 1.0} | dict.fromkeys(REASONING, 1 / 4)


def draw_world(world, size, seed):
    """Scenes, captions and boxes, the same pictures of half the side, and stage 1's samples."""
    if (world / "pretrain.json").exists():
        return
    make_world(world, "train", size.scenes, seed)
    make_world(world, "val", size.heldout, seed)
    for split in ("train", "val"):
        shrink_all(world / split, world / f"{split}-half")
    samples = toy_samples(symbols_of(world, "train"), {"brief": 1.0}, seed)
    # the last file to be written: where it is, all others are
    write(world / "pretrain.json", json.dumps(samples))


def shrink_all(folder, to):
    """96 x 96 pixels -> 48 x 48, which the preprocessing will draw large again."""
    to.mkdir(exist_ok=True)
    for path in folder.glob("*.png"):
        half = load_image(path).resize((SIDE // 2, SIDE // 2), Image.Resampling.BOX)
        half.save(to / path.name)


def training_file(world, data, size, seed):
    """The samples of stage 2 by the name that a Run gives -> their file, or ScienceQA's folder."""
    if data == "ScienceQA":
        folder = world / "scienceqa"
        if not (folder / "captions.json").exists():  # the last file to be written
            make_scienceqa(folder, {"train": size.problems, "test": size.questions}, seed)
        return folder
    path = world / f"{data.replace(' ', '-')}.json"
    if not path.exists():
        samples = training_samples(symbols_of(world, "train"), data, seed)
        write(path, json.dumps(samples))
    return path


def training_samples(symbols, data, seed):
    if data in MIXES:
        return toy_samples(symbols, MIXES[data], seed)
    if data == "careless":
        return toy_samples(symbols, MIXES["full"], seed, teacher=ask_carelessly)
    # as many conversations of whole sentences as of words
    mix = MIXES["conversation alone"]
    names = choose(symbols, round(mix["conversation"] * len(symbols)), f"{seed} short")
    sentences = toy_samples(symbols, mix, seed)
    return sentences + short_samples(symbols, names, seed, with_wish=data == "with the wish")


# --------------------------------------------------------------------------- what is asked at last

def questions_of(world, size, seed):
    """Of conversation, detail and reasoning a third each."""
    asked = []
    taken = Counter()
    for question in heldout_questions(symbols_of(world, "val"), size.questions, seed):
        kind = question["type"]
        if taken[kind] < size.questions * SHARES[kind]:
            taken[kind] += 1
            asked.append(question)
    return asked


def both_forms(questions, with_wish):
    """Each question of a conversation twice: it wants a sentence, and a word."""
    asked = []
    for question in questions:
        if question["type"] not in CONVERSATION:
            continue
        short = short_answer(question["type"], question["answer"])
        if short:
            text = question["question"]
            brief = {"question": wished(text) if with_wish else text, "answer": short}
            asked += [question, question | brief]
    return asked
