"""The miniature as a whole: the data its two stages learn from, and what it has learned of it.

`train.py` draws the data, trains both stages and prints the held-out table. For any miniature:

    python -m minillava.toy.miniature --model runs/own/llava     # the table, on newly drawn scenes
"""
import argparse
import json
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from minillava.checkpoint import load_llava
from minillava.conversation import human_turn
from minillava.files import read_json, write
from minillava.generate import generate, stream
from minillava.images import load_image
from minillava.terminal import errors_in_one_line
from minillava.toy.annotations import make_world, symbols_of
from minillava.toy.instruct import FINETUNE, PRETRAIN, SCIENCE_PRETRAIN, SECOND_ROUND
from minillava.toy.instruct import toy_samples
from minillava.toy.questions import heldout_questions
from minillava.toy.scienceqa import make_scienceqa
from minillava.toy.teacher import teach
from minillava.toy.world import SIDE
from minillava.training import distributed
from minillava.training.loss_picture import draw_loss
from minillava.training.run_folder import already_there, losses, measured


def make_miniature(run, recipes, stage_2, sources, setup, scenes, heldout, per_type, device):
    """The whole of LLaVA at the size of a laptop, from two backbones; stage 2 may be ScienceQA.

    run: the function of train.py that carries out a recipe. From a finished miniature on
    (sources.init) it is a second round of stage 2.
    """
    since = time.time()
    world, pretrain = setup.out / "world", setup.out / "pretrain"
    result = setup.out / recipes[stage_2].result
    science = stage_2 == "toy-scienceqa"
    kinds = SECOND_ROUND if sources.starts_whole else FINETUNE
    if measured(pretrain) and not setup.resume:
        raise already_there(setup.out)

    # scenes, captions and boxes, and what is asked about them
    if distributed.rank() == 0:
        draw_world(world, scenes, heldout, setup.seed, kinds, science)
    distributed.barrier()

    # stage 1: the projector learns to describe
    stage = replace(sources, data=world / "pretrain.json", images=world / "train")
    if not sources.init:
        run(recipes["toy-pretrain"], stage, replace(setup, out=pretrain), device)

    # stage 2: projector and language model learn to converse
    stage = replace(stage, init=sources.init or pretrain, data=world / "finetune.json")
    if science:
        stage = replace(stage, data=world / "scienceqa", images=None)
    run(recipes[stage_2], stage, setup, device)

    # what has been learned
    if distributed.rank() == 0:
        if not sources.init:
            curves = [("stage 1", losses(pretrain)), ("stage 2", losses(setup.out))]
            draw_loss(curves, setup.out / "loss.png")
        if not science:
            model, tokenizer = load_llava(result, device=device, dtype="float32")
            report(model, tokenizer, world, setup.out, per_type, setup.seed)
        print_ending(setup.out, result, science, time.time() - since)


def print_ending(out, result, science, seconds):
    following = "Talk with it:\n    python chat.py"
    if science:
        following = "Score it:\n    python eval_scienceqa.py"
    print(f"\nAll in {seconds / 60:.1f} minutes. The losses are in {out / 'loss.png'}. "
          f"{following} --model {result}")


def draw_world(world, scenes, heldout, seed, kinds=FINETUNE, science=False):
    """Draws the folder `world`: pictures and annotations (train, val), a file of samples per stage.

    world/pretrain.json is for stage 1, world/finetune.json with samples of these kinds or the
    folder world/scienceqa for stage 2. A world that is there already stays; ValueError if it has
    another number of scenes.
    """
    if (world / "pretrain.json").exists():
        refuse_other_world(world, scenes, heldout)
        return
    print(f"Drawing the toy world: {scenes} scenes to learn from "
          f"and {heldout} held out, in {world}")
    make_world(world, "train", scenes, seed)
    make_world(world, "val", heldout, seed)

    symbols = symbols_of(world, "train")
    if science:
        make_scienceqa(world / "scienceqa", {"train": 2 * scenes}, seed)
    else:
        samples = toy_samples(symbols, kinds, seed, world / "train")
        write(world / "finetune.json", json.dumps(samples))

    # the last file to be written: where it is, all others are
    kinds = SCIENCE_PRETRAIN if science else PRETRAIN
    samples = toy_samples(symbols, kinds, seed, world / "train")
    write(world / "pretrain.json", json.dumps(samples))


def with_replay(sources, world, seed, scenes=1000):
    """The sources, with old data drawn for a miniature: the kinds that its stage 2 learned from."""
    config = read_json(sources.whole_folder / "config.json") if sources.starts_whole else {}
    if config.get("vision_config", {}).get("image_size") != SIDE:
        raise ValueError("--replay mixes old data in: name it with --replay-data FILE "
                         "and --replay-images DIR (only a miniature draws its own)")
    if distributed.rank() == 0:
        draw_world(world, scenes, 1, seed)
    distributed.barrier()
    return replace(sources, replay_data=world / "finetune.json", replay_images=world / "train")


def refuse_other_world(world, scenes, heldout):
    for split, flag, asked in (("train", "--scenes", scenes), ("val", "--heldout", heldout)):
        there = len(read_json(world / f"captions_{split}.json")["images"])
        if there != asked:
            raise ValueError(f"{world} was drawn with {flag} {there}: resume with that, "
                             f"or name another folder with --out")


def report(model, tokenizer, world, out, per_type, seed):
    """Prints the held-out table, kept in out/heldout.json, and a chat about a held-out scene."""
    heldout = symbols_of(world, "val")
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

    return {
        "its_picture": score(model, tokenizer, questions, own, "held-out questions"),
        "no_picture": score(model, tokenizer, questions, none, "control: no picture"),
        "another_picture": score(model, tokenizer, questions, other, "control: another picture"),
    }


def score(model, tokenizer, questions, images, desc):
    """-> {type: share of questions whose whole answer is exactly right}, and of "all".

    images: a PIL image or None per question.
    """
    answers = answers_to(model, tokenizer, questions, images, desc)
    hits = {question["type"]: [] for question in questions}
    for question, answer in zip(questions, answers):
        is_right = answer == question["answer"]
        hits[question["type"]].append(is_right)

    shares = {kind: sum(right) / len(right) for kind, right in sorted(hits.items())}
    # Each type has as many questions, so this is the share of all.
    shares["all"] = sum(shares.values()) / len(shares)
    return shares


def answers_to(model, tokenizer, questions, images, desc=None, batch=128, max_new_tokens=96):
    """-> the model's answer to each question, asked in batches.

    questions: [{"question", "answer": the right one, if it is known}]; desc: of the progress bar.
    """
    # rows of a batch end together, if their answers are about as long
    lengths = [len(question.get("answer", "")) for question in questions]
    order = sorted(range(len(questions)), key=lambda i: lengths[i])
    answers = [None] * len(questions)
    for start in tqdm(range(0, len(order), batch), desc=desc, disable=desc is None):
        rows = order[start : start + batch]
        prompts = [questions[i]["question"] for i in rows]
        shown = [images[i] for i in rows]
        texts = generate(model, tokenizer, prompts, shown, max_new_tokens)
        for i, text in zip(rows, texts):
            answers[i] = text
    return answers


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
        # A model that learned little may never end: three such answers fit into its context.
        pieces = stream(model, tokenizer, turns, picture, max_new_tokens=200)
        answer = "".join(pieces).strip()
        turns.append(("gpt", answer))
        print(f"  you>   {question}\n  llava> {answer}")


def main():
    parser = argparse.ArgumentParser(prog="python -m minillava.toy.miniature", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="(default: the shipped miniature)")
    parser.add_argument("--base", type=Path, help="of an adapter, where it has moved")
    parser.add_argument("--heldout", type=int, default=400, help="scenes")
    parser.add_argument("--per-type", type=int, default=110, help="questions of each type")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with errors_in_one_line():
        if args.heldout < 2 or args.per_type < 1:
            raise ValueError("--heldout is 2 or more, --per-type 1 or more")
        model, tokenizer = load_llava(args.model, base=args.base, dtype="float32")
        with tempfile.TemporaryDirectory() as folder:
            make_world(folder, "val", args.heldout, args.seed)
            report(model, tokenizer, Path(folder), Path(folder), args.per_type, args.seed)


if __name__ == "__main__":
    main()
