"""Carries out a run of the ablations: trains it by train.py, and asks it held-out questions.

A run is a folder with result.json at last; what has one is not run again. Runs of a seed share its
data, and stage 1 where they do not change it.
"""
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from minillava.checkpoint import TOY, load_llava
from minillava.evaluation import scienceqa
from minillava.evaluation.answers import batches_of
from minillava.evaluation.scienceqa_answers import choices_of
from minillava.evaluation.scienceqa_asking import answering
from minillava.explain.ablation_data import both_forms, draw_world, questions_of, symbols_of
from minillava.explain.ablation_data import training_file
from minillava.explain.ablation_rows import RUNS
from minillava.files import read_json, write
from minillava.images import load_image
from minillava.toy.judge import mark, statements
from minillava.toy.miniature import answers_to
from minillava.training.checkpoints import checkpoints, load_weights
from minillava.training.run_folder import losses

TRAIN = Path(__file__).parents[2] / "train.py"
SCIENCEQA_BATCH = 16  # half of the recipe's: there are few steps


@dataclass(frozen=True)
class Size:
    """Small enough for a minute or two a run, and the answers are far from all right."""

    scenes: int = 1200      # to learn from
    heldout: int = 400      # scenes to be asked about
    questions: int = 400    # of each of the three kinds, and of ScienceQA
    problems: int = 5000    # of ScienceQA, to learn from


def result_of(name, out, size, seed):
    """-> {"right": [0 or 1 for each question], ...}; what is done already is read."""
    folder = run_folder(name, out, seed)
    path = folder / "result.json"
    if not path.exists():
        run, world = RUNS[name], out / f"seed-{seed}" / "world"
        print(f"seed {seed}: {name}", file=sys.stderr, flush=True)
        draw_world(world, size, seed)
        if run.pretrained:
            pretrain(run, out, seed)
        if run.finetuned:
            finetune(run, folder, out, size, seed)
        write(path, json.dumps(examined(run, folder, out, size, seed)))
    return read_json(path)


def run_folder(name, out, seed):
    return out / f"seed-{seed}" / name.replace(" ", "-")


def pretrain_folder(run, out, seed):
    """Of the stage 1 that it shares with all runs of the same flags and pictures."""
    words = [flag.strip("-") for flag in (*run.flags, run.pictures)]
    return out / f"seed-{seed}" / "-".join(["pretrain", *words])


def losses_of(name, out, seed):
    """Of its last stage, a step each."""
    run = RUNS[name]
    return losses(run_folder(name, out, seed) if run.finetuned else pretrain_folder(run, out, seed))


# ------------------------------------------------------------------------------------- training

def pretrain(run, out, seed):
    world, folder = out / f"seed-{seed}" / "world", pretrain_folder(run, out, seed)
    if not (folder / "mm_projector.bin").exists():
        train("toy-pretrain", folder, seed, "--data", world / "pretrain.json",
              "--images", world / run.pictures, *run.flags)


def finetune(run, folder, out, size, seed):
    if (folder / "llava").exists():
        return
    world = out / f"seed-{seed}" / "world"
    flags = [*run.flags, *run.finetune_flags, "--data", training_file(world, run.data, size, seed)]
    if run.pretrained:
        flags += ["--init", pretrain_folder(run, out, seed)]
    if run.data != "ScienceQA":
        train("toy-finetune", folder, seed, "--images", world / run.pictures, *flags)
        return
    # four looks on the way
    every = max(1, size.problems // SCIENCEQA_BATCH // 4)
    train("toy-scienceqa", folder, seed, "--batch", SCIENCEQA_BATCH, "--per-gpu", SCIENCEQA_BATCH,
          "--save-every", every, "--keep", 4, *flags)


def train(recipe, folder, seed, *flags):
    """train.py in a process of its own; it goes on where it was stopped."""
    words = [sys.executable, TRAIN, "--recipe", recipe, "--out", folder, "--resume",
             "--seed", seed, *flags]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "train.log", "w", encoding="utf-8") as log:
        done = subprocess.run([str(word) for word in words], stdout=log, stderr=log)
    if done.returncode:
        raise ValueError(f"a training ended with an error, see {folder / 'train.log'}")


# -------------------------------------------------------------------------------------- asking

def examined(run, folder, out, size, seed):
    """-> {"right": [0 or 1], "judged": [1 to 10], ...}, of each question or of ScienceQA's."""
    world = out / f"seed-{seed}" / "world"
    model, tokenizer = trained_model(run, folder, out, seed)
    if run.data == "ScienceQA":
        return science_result(model, tokenizer, run, folder, out, size, seed)

    questions = questions_of(world, size, seed)
    if run.both_forms:
        questions = both_forms(questions, run.data == "with the wish")
    pictures = {name: load_image(world / run.pictures.replace("train", "val") / name)
                for name in symbols_of(world, "val")}
    shown = [pictures[question["image"]] for question in questions]
    answers = answers_to(model, tokenizer, questions, shown, "held-out questions")
    pairs = [(answer, question["answer"]) for answer, question in zip(answers, questions)]
    return {"right": [int(answer == true) for answer, true in pairs],
            "judged": [mark(statements(answer), statements(true)) for answer, true in pairs]}


def trained_model(run, folder, out, seed):
    if run.finetuned:
        return load_llava(folder / "llava", dtype="float32")
    projector = pretrain_folder(run, out, seed) / "mm_projector.bin"
    return load_llava(vision=TOY / "clip", language=TOY / "vicuna", projector=projector,
                      dtype="float32")


# ----------------------------------------------------------------------------------- ScienceQA

def science_result(model, tokenizer, run, folder, out, size, seed):
    """Of the end, and "curve": [(step, share right)], with the checkpoints on the way."""
    data = training_file(out / f"seed-{seed}" / "world", run.data, size, seed)
    prompt_format = model.config.prompt_format
    right = science_right(model, tokenizer, data, prompt_format)
    curve = [(len(losses(folder)), sum(right) / len(right))]

    # a checkpoint's weights belong to the model as its training built it
    projector = pretrain_folder(run, out, seed) / "mm_projector.bin"
    model, _ = load_llava(vision=TOY / "clip", language=TOY / "vicuna", projector=projector,
                          dtype="float32")
    model.freeze_for(2)
    for step, path in checkpoints(folder).items():
        load_weights(path, model)
        on_the_way = science_right(model, tokenizer, data, prompt_format)
        curve.append((step, sum(on_the_way) / len(on_the_way)))
    return {"right": right, "curve": sorted(curve)}


def science_right(model, tokenizer, data, prompt_format, batch=128):
    """-> [1 for each problem of the test whose letter is right, else 0]."""
    problems = scienceqa.load(data, "test")
    samples = scienceqa.convert(data, "test", prompt_format)
    questions = scienceqa.questions(samples, scienceqa.image_folder(data, "test"))
    # where the answer comes first, no more of it need be written
    room = 16 if prompt_format.endswith("-ALE") else 256
    answer = answering(model, tokenizer, {"prompt_format": prompt_format, "max_new_tokens": room})

    texts = {}
    for asked in batches_of(questions, batch):
        ids = [question["question_id"] for question in asked]
        texts.update(zip(ids, answer(asked)))
    chosen = choices_of(texts, problems)
    return [int(chosen[i] == problem["answer"]) for i, problem in problems.items()]
