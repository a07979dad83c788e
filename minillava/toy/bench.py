"""LLaVA-Bench (COCO) in miniature: questions on held-out scenes, answered, judged and reported.

    python -m minillava.toy.bench --out runs/bench                      # the shipped miniature
    python -m minillava.toy.bench --model runs/toy/llava --out runs/bench
"""
import random
import shlex
from pathlib import Path

from minillava.evaluation.__main__ import make_parser
from minillava.evaluation.scoring import keep_score
from minillava.files import write_jsonl
from minillava.instruct.command import run_command
from minillava.terminal import command_parser
from minillava.toy.annotations import make_world, symbols_of
from minillava.toy.instruct import TEACHERS
from minillava.toy.teacher import teach

KINDS = {"conv": "conversation", "detail": "detail", "complex": "reasoning"}  # by the bench's name


def bench(model, scenes, seed, out):
    """Writes the bench's files to `out` and runs the three commands of minillava.evaluation."""
    make_world(out, "val", scenes, seed)
    symbols = symbols_of(out, "val")
    files = {name: out / f"{name}.jsonl"
             for name in ("questions", "context", "reference", "answers", "reviews")}
    for name, rows in bench_rows(symbols, random.Random(seed)).items():
        write_jsonl(files[name], rows)
    files["answers"].unlink(missing_ok=True)  # of a model of the same name, perhaps

    evaluate("answer", "--questions", files["questions"], "--images", out / "val",
             "--out", files["answers"], "--batch", "30", *(["--model", model] if model else []))
    evaluate("judge", "--questions", files["questions"], "--context", files["context"],
             "--answers", files["reference"], files["answers"], "--teacher", "toy",
             "--out", files["reviews"])
    evaluate("report", files["reviews"])
    keep_score("llava-bench", files["reviews"], title="LLaVA-Bench of the toy world")


def bench_rows(symbols, rng):
    """-> rows of questions, of the teacher's answers, of what the judge is told of a picture."""
    questions, reference, context = [], [], []
    for name, (captions, boxes) in symbols.items():
        things = [{"category": category, "bbox": box} for category, box in boxes]
        context.append({"id": Path(name).stem, "image": name, "captions": captions,
                        "instances": things})
        for category, kind in KINDS.items():
            question, answer = teach(kind, captions, boxes, rng)[0]
            row = {"question_id": len(questions), "category": category}
            questions.append(row | {"image": name, "text": question})
            reference.append(row | {"text": answer})
    return {"questions": questions, "context": context, "reference": reference}


def evaluate(*words):
    """Shows a command of minillava.evaluation and runs it, with the toy teacher to choose from."""
    words = [str(word) for word in words]
    print("\n$ python -m minillava.evaluation", shlex.join(words), flush=True)
    args = make_parser(TEACHERS).parse_args(words)
    args.run(args)


def run_on_scenes(measure, name, description, scenes):
    """The command line of a benchmark of the toy world: measure(model, scenes, seed, out)."""
    parser = command_parser(f"toy.{name}", description)
    parser.add_argument("--model", type=Path, help="folder of a LLaVA (default: the miniature)")
    parser.add_argument("--scenes", type=int, default=scenes)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.set_defaults(
        run=lambda args: measure(args.model, args.scenes, args.seed, args.out))
    run_command(parser)


def main():
    run_on_scenes(bench, "bench", __doc__, scenes=30)


if __name__ == "__main__":
    main()
