"""Carries out a run of the ablations: trains it by train.py, and asks it held-out questions.

A run is a folder with result.json at last; what has one is not run again. Runs of a seed share its
data, and stage 1 where they do not change it.
"""
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from minillava.checkpoint import TOY, load_llava
from minillava.evaluation import scienceqa
from minillava.evaluation.answers import batches_of
from minillava.evaluation.scienceqa_answers import choices_of
from minillava.evaluation.scienceqa_asking import answering
from minillava.explain.ablation_data import both_forms, draw_world, questions_of
from minillava.explain.ablation_data import training_file
from minillava.explain.ablation_rows import RUNS
from minillava.explain.train_script import train_apart
from minillava.files import read_json, write
from minillava.images import load_image
from minillava.toy.annotations import symbols_of
from minillava.toy.judge import mark, statements
from minillava.toy.miniature import answers_to
from minillava.training.checkpoints import checkpoints, load_weights
from minillava.training.run_folder import losses

# half of the recipes': of so few samples there would be too few steps
BATCH = {"toy-pretrain": 16, "toy-finetune": 8, "toy-scienceqa": 16}


@dataclass(frozen=True)
class Size:
    """Small enough for a minute or two a run, and the answers are far from all right."""

    scenes: int = 1200      # to learn from
    heldout: int = 400      # scenes to be asked about
    questions: int = 304    # of each of the three kinds, and of ScienceQA
    problems: int = 5000    # of ScienceQA, to learn from


@dataclass(frozen=True)
class Seed:
    """The runs of one seed: their folder, which the data lies in too."""

    number: int
    folder: Path
    size: Size

    @property
    def world(self):
        return self.folder / "world"

    def run_folder(self, name):
        return self.folder / name.replace(" ", "-")

    def pretrain_folder(self, run):
        """Stage 1 is shared by all runs of the same flags and pictures."""
        words = [flag.strip("-") for flag in (*run.flags, run.pictures)]
        return self.folder / "-".join(["pretrain", *words])


def result_of(name, seed):
    """-> {"right": [0 or 1 for each question], ...}; what is done already is read."""
    path = seed.run_folder(name) / "result.json"
    if not path.exists():
        print(f"seed {seed.number}: {name}", file=sys.stderr, flush=True)
        draw_world(seed.world, seed.size, seed.number)
        if RUNS[name].pretrained:
            pretrain(RUNS[name], seed)
        if RUNS[name].finetuned:
            finetune(name, seed)
        write(path, json.dumps(examined(name, seed)))
    return read_json(path)


def losses_of(name, seed):
    """Of its last stage, a step each."""
    run = RUNS[name]
    return losses(seed.run_folder(name) if run.finetuned else seed.pretrain_folder(run))


# ------------------------------------------------------------------------------------- training

def pretrain(run, seed):
    folder = seed.pretrain_folder(run)
    if not (folder / "mm_projector.bin").exists():
        train("toy-pretrain", folder, seed, "--data", seed.world / "pretrain.json",
              "--images", seed.world / run.pictures, *run.flags)


def finetune(name, seed):
    run = RUNS[name]
    folder = seed.run_folder(name)
    if (folder / "llava").exists():
        return
    data = training_file(seed.world, run.data, seed.size, seed.number)
    flags = [*run.flags, *run.finetune_flags, "--data", data]
    if run.pretrained:
        flags += ["--init", seed.pretrain_folder(run)]
    if run.data != "ScienceQA":
        train("toy-finetune", folder, seed, "--images", seed.world / run.pictures, *flags)
        return
    # a look after each quarter
    every = max(1, seed.size.problems // BATCH["toy-scienceqa"] // 4)
    train("toy-scienceqa", folder, seed, "--save-every", every, "--keep", 4, *flags)


def train(recipe, folder, seed, *flags):
    """It goes on where it was stopped."""
    train_apart(folder / "train.log", "--recipe", recipe, "--out", folder, "--resume",
                "--seed", seed.number, "--batch", BATCH[recipe], "--per-gpu", BATCH[recipe], *flags)


# -------------------------------------------------------------------------------------- asking

def examined(name, seed):
    """-> {"right": [0 or 1], "judged": [1 to 10]} of each question; ScienceQA's has "curve"."""
    run = RUNS[name]
    model, tokenizer = trained_model(name, seed)
    if run.data == "ScienceQA":
        return science_result(model, tokenizer, name, seed)

    questions = questions_of(seed.world, seed.size, seed.number)
    if run.both_forms:
        questions = both_forms(questions, run.data == "with the wish")
    folder = seed.world / run.pictures.replace("train", "val")
    pictures = {file: load_image(folder / file) for file in symbols_of(seed.world, "val")}
    shown = [pictures[question["image"]] for question in questions]

    answers = answers_to(model, tokenizer, questions, shown, "held-out questions")
    pairs = [(answer, question["answer"]) for answer, question in zip(answers, questions)]
    return {"right": [int(answer == true) for answer, true in pairs],
            "judged": [mark(statements(answer), statements(true)) for answer, true in pairs]}


def trained_model(name, seed):
    if RUNS[name].finetuned:
        return load_llava(seed.run_folder(name) / "llava", dtype="float32")
    return before_stage_2(RUNS[name], seed)


def before_stage_2(run, seed):
    projector = seed.pretrain_folder(run) / "mm_projector.bin"
    return load_llava(vision=TOY / "clip", language=TOY / "vicuna", projector=projector,
                      dtype="float32")


# ----------------------------------------------------------------------------------- ScienceQA

def science_result(model, tokenizer, name, seed):
    """Of the end, and "curve": [(step, share right)], with the checkpoints on the way."""
    run = RUNS[name]
    folder = seed.run_folder(name)
    data = training_file(seed.world, run.data, seed.size, seed.number)
    prompt_format = model.config.prompt_format
    right = science_right(model, tokenizer, data, prompt_format)
    curve = [(len(losses(folder)), sum(right) / len(right))]

    # a checkpoint's weights belong to the model as its training built it
    model, _ = before_stage_2(run, seed)
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
