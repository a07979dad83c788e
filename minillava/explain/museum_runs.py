"""What a bug does, measured: a short stage 2 by train.py itself, then held-out questions.

A result is {"losses", "seen", "blind", "answers"}: the curve of the training; for each type of
question and for all, the share of whole answers that are right with the picture and without one;
and what is said to a few questions. It is kept in a folder of these weights and this size, so that
the healthy run is made once.
"""
import contextlib
import io
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

from minillava.checkpoint import TOY, load_llava
from minillava.explain.exhibits import EXHIBITS
from minillava.explain.train_script import train_here
from minillava.files import read_json, write
from minillava.generate import generate
from minillava.images import load_image
from minillava.toy.annotations import symbols_of
from minillava.toy.miniature import draw_world, score
from minillava.toy.questions import heldout_questions
from minillava.training.run_folder import losses

SYMPTOMS = ("color", "exists", "detail")  # types of question whose answers are shown


@dataclass(frozen=True)
class Museum:
    """Where runs are kept, and how long they are."""

    out: Path
    scenes: int     # that stage 2 learns from: 2.5 samples each, 16 to a step
    per_type: int   # held-out questions of each of the 13 types

    @property
    def folder(self):
        """Of this size, and of the shipped weights that all begins with."""
        weights = b"".join(path.read_bytes() for path in sorted(TOY.rglob("model.safetensors")))
        return self.out / f"{self.scenes}-{self.per_type}-{zlib.crc32(weights):08x}"

    def compare(self, name):
        """-> the results of the healthy run and of this bug, from the folder if they are there."""
        exhibit = EXHIBITS[name]
        well = "trained" if exhibit.trained else "shipped"
        return (self.result(f"healthy-{well}", contextlib.nullcontext, exhibit.trained),
                self.result(name, exhibit.bug, exhibit.trained))

    def result(self, name, bug, trained):
        folder = self.folder / name
        if not (folder / "result.json").exists():
            world = self.folder / "world"
            # Progress is on standard error; what else the parts say of themselves is not shown.
            with contextlib.redirect_stdout(io.StringIO()):
                draw_world(world, self.scenes, max(2, self.scenes // 10), seed=7)
                with bug():
                    found = measure(folder, world, trained, self.per_type)
            write(folder / "result.json", json.dumps(found, indent=1))
        return read_json(folder / "result.json")


def measure(folder, world, trained, per_type):
    """Trains if asked to, and asks the held-out questions -> a result."""
    if trained:
        train_here("--recipe", "toy-finetune", "--init", TOY / "pretrain", "--out", folder,
                   "--resume", "--data", world / "finetune.json", "--images", world / "train")
    model, tokenizer = load_llava(folder / "llava" if trained else None, dtype="float32")

    symbols = symbols_of(world, "val")
    questions = heldout_questions(symbols, per_type, seed=7)
    pictures = [load_image(world / "val" / question["image"]) for question in questions]
    nothing = [None] * len(questions)

    seen = score(model, tokenizer, questions, pictures, "with their pictures")
    blind = score(model, tokenizer, questions, nothing, "without a picture")
    return {"losses": losses(folder) if trained else [], "seen": seen, "blind": blind,
            "answers": symptoms(model, tokenizer, questions, pictures)}


def symptoms(model, tokenizer, questions, pictures):
    """-> [(question, right answer, answer)], one of each type in SYMPTOMS, asked as one batch."""
    first = {}
    for question, picture in zip(questions, pictures):
        first.setdefault(question["type"], (question, picture))
    asked, shown = zip(*(first[kind] for kind in SYMPTOMS))

    texts = [question["question"] for question in asked]
    said = generate(model, tokenizer, texts, shown, max_new_tokens=48)
    right = [question["answer"] for question in asked]
    return list(zip(texts, right, said))
