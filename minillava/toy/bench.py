"""LLaVA-Bench (COCO) in miniature: python -m minillava.toy.bench --out DIR"""
import argparse
import json
import random
import shlex
from pathlib import Path

from minillava.evaluation.__main__ import make_parser
from minillava.files import write
from minillava.instruct.command import run_command
from minillava.instruct.symbols import read_symbols
from minillava.toy import annotations, teacher
from minillava.toy.instruct import TEACHERS


def toy(args):
    """LLaVA-Bench (COCO) in miniature: per held-out scene a question of each category, and the teacher's answers."""
    annotations.make_world(args.out, "val", args.scenes, args.seed)
    symbols = read_symbols(args.out / "captions_val.json", args.out / "instances_val.json")
    files, rng = {"questions": [], "context": [], "reference": []}, random.Random(args.seed)
    for name, (captions, boxes) in symbols.items():
        things = [{"category": category, "bbox": box} for category, box in boxes]
        files["context"].append({"id": Path(name).stem, "image": name, "captions": captions, "instances": things})
        for category, kind in (("conv", "conversation"), ("detail", "detail"), ("complex", "reasoning")):
            question, answer = teacher.teach(kind, captions, boxes, rng)[0]
            row = {"question_id": len(files["questions"]), "category": category}
            files["questions"].append(row | {"image": name, "text": question})
            files["reference"].append(row | {"text": answer})
    paths = {name: args.out / f"{name}.jsonl" for name in (*files, "answers", "reviews")}
    for name, rows in files.items():
        write(paths[name], "".join(json.dumps(row) + "\n" for row in rows))
    paths["answers"].unlink(missing_ok=True)  # of a model of the same name, perhaps
    model = ["--model", args.model] if args.model else []
    for command in (["answer", "--questions", paths["questions"], "--images", args.out / "val",
                     "--out", paths["answers"], "--batch", "30", *model],
                    ["judge", "--questions", paths["questions"], "--context", paths["context"],
                     "--answers", paths["reference"], paths["answers"], "--teacher", "toy", "--out", paths["reviews"]],
                    ["report", paths["reviews"]]):
        command = list(map(str, command))
        print("\n$ python -m minillava.evaluation", shlex.join(command), flush=True)
        again = make_parser(TEACHERS).parse_args(command)
        again.run(again)
    return 0


def main():
    parser = argparse.ArgumentParser(prog="python -m minillava.toy.bench", description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--scenes", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.set_defaults(run=toy)
    run_command(parser)


if __name__ == "__main__":
    main()
