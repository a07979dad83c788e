"""A model answers a question file: `python -m minillava.evaluation answer`."""
import dataclasses
import os
import sys
import zlib
from functools import partial
from pathlib import Path

import torch

from minillava.checkpoint import load_llava
from minillava.conversation import TEMPLATES
from minillava.evaluation.answers import answer_file, fingerprint
from minillava.evaluation.questions import picture_of, with_control
from minillava.generate import generate
from minillava.linear import prepack_layers
from minillava.terminal import printable
from minillava.weights.allocator import keep_freed_memory


# the flags that decide an answer, beside the weights
SETTINGS = ("benchmark", "template", "control", "temperature", "top_p", "seed", "max_new_tokens",
            "batch")


def answer_questions(questions, out, model, tokenizer, images, name, settings, share, quiet):
    """Asks every question that the file `out` does not answer yet; returns its rows, in order.

    settings: a value for each of SETTINGS. share: (index, count) where several processes do the
    work; None is returned while another part is under way.
    """
    if settings["control"]:
        questions = with_control(questions, settings["control"])
    if settings["template"]:
        model.config = dataclasses.replace(model.config, template=settings["template"])

    dtype = model.language_model.embed_tokens.weight.dtype
    metadata = settings | {"template": model.config.template,
                           "dtype": str(dtype).removeprefix("torch."),
                           "fingerprint": fingerprint(model)}
    answer = partial(answer_batch, model, tokenizer, images, settings)
    return answer_file(questions, out, answer, name, metadata, settings["batch"], share, quiet)


def answer_batch(model, tokenizer, images, settings, asked):
    """A batch of questions -> texts."""
    prompts = [question["prompt"] for question in asked]
    pictures = [picture_of(question, images) for question in asked]
    if settings["temperature"] > 0:
        # the same draws whichever process asks this batch, and after whatever stop
        own = zlib.crc32("\0".join(prompts).encode("utf-8", "replace"))
        torch.manual_seed(settings["seed"] + own)
    return generate(model, tokenizer, prompts, pictures, settings["max_new_tokens"],
                    settings["temperature"], settings["top_p"])


def report_answers(rows, out):
    """Prints where the answers are, and names those that are empty because something was wrong."""
    if rows is None:
        print("this share is answered; the last of the others to end joins them all in",
              printable(out))
        return
    print(f"{len(rows)} answers are in {printable(out)}")
    name_failures(rows)


def name_failures(rows):
    """Says on standard error which answers are empty, and why; ValueError if all are."""
    failed = [row for row in rows if "error" in row]
    for row in failed:
        reason = printable(f"question {row['question_id']}: {row['error']}", keep="")
        print(f"no answer to {reason}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(rows)} questions have an empty answer; the same command asks "
              "them again", file=sys.stderr)
    if failed and len(failed) == len(rows):
        raise ValueError(f"no question could be answered: {failed[0]['error']}")


# -------------------------------------------------------------------------------- several processes

def share_of_this_process(num_chunks, chunk_idx):
    """-> (index, count), of the flags, else torchrun's rank and number of ranks, else (0, 1)."""
    if num_chunks == 1 and chunk_idx == 0:
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= chunk_idx < num_chunks:
        raise ValueError(f"--chunk-idx counts from 0 to {num_chunks - 1}, one less than "
                         "--num-chunks")
    return chunk_idx, num_chunks


# --------------------------------------------------------------------------------------- the model

def add_model_flags(parser):
    """The flags that `open_model` and `answer_questions` are given."""
    add = parser.add_argument
    add("--model", type=Path, help="folder of a LLaVA (default: the shipped miniature)")
    for part in ("vision", "language", "projector", "base"):
        add(f"--{part}", help=f"the {part} of a model in parts, see the README")
    add("--quantize", choices=("int8", "int4"), help="a smaller language model, nearly as good")
    add("--device", default="auto", help="cpu, cuda, ...")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    add("--template", choices=[name for name in TEMPLATES if name != "plain"],
        help="default: the checkpoint's")


def open_model(folder, vision, language, projector, base, quantize, device, dtype):
    """-> (Llava, Tokenizer), as `load_llava`; each of torchrun's ranks takes a GPU of its own.

    Weights are prepacked, but no product is chosen by fastest.py: a score shall not depend on a
    stopwatch, and for the 16 rows of a batch none was found that is faster and as exact.
    """
    rank = os.environ.get("LOCAL_RANK")
    if device == "auto" and rank is not None and torch.cuda.is_available():
        device = f"cuda:{int(rank) % torch.cuda.device_count()}"
    model, tokenizer = load_llava(folder, vision=vision, language=language, projector=projector,
                                  base=base, quantize=quantize, device=device, dtype=dtype)
    keep_freed_memory()
    prepack_layers(model.requires_grad_(False))
    return model, tokenizer
