"""LLaVA-Bench (section 5.1): answers to any question file, a judge who compares them, relative scores.

    python -m minillava.evaluation answer --questions q.jsonl --images DIR --out answers.jsonl
    python -m minillava.evaluation judge --questions q.jsonl --context caps_boxes.jsonl \\
        --answers gpt4.jsonl answers.jsonl --teacher openai --out reviews.jsonl
    python -m minillava.evaluation report reviews.jsonl

Files are the official ones, in and out. An answer is a line {"question_id", "prompt", "text", "answer_id", "model_id",
"metadata"}, which the converters of VQAv2, GQA, VizWiz, TextVQA, POPE, MME, SEED, MM-Vet and MMBench take. The question
file of MMBench is a .tsv with its pictures inside, those of the others are jsonl: {"question_id", "image", "text"}.
"""
import argparse
from functools import partial
from pathlib import Path

from minillava.evaluation.answers import FORMS, answer
from minillava.evaluation.judge import add_judge_flags, judge
from minillava.evaluation.report import add_report_flags, report
from minillava.instruct.command import run_command


def make_parser(teachers=None):
    parser = argparse.ArgumentParser(prog="python -m minillava.evaluation", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = argparse.BooleanOptionalAction
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("answer", help="a question file and pictures -> answers")
    command.set_defaults(run=answer)
    command.add_argument("--questions", type=Path, required=True)
    command.add_argument("--images", type=Path, help="the folder that the questions' images are in")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--model", type=Path, help="folder of a LLaVA (default: the shipped miniature)")
    command.add_argument("--vision", help="folder of its CLIP, where it has none of its own")
    form = command.add_mutually_exclusive_group()
    for name, wish in FORMS.items():
        form.add_argument(f"--{name.replace('_', '-')}", action=flag, default=False, help=f'asks: "{wish}"')
    command.add_argument("--max-new-tokens", type=int, default=1024)
    command.add_argument("--temperature", type=float, default=0.0)
    command.add_argument("--batch", type=int, default=8)
    command.add_argument("--device", default="auto")
    command = commands.add_parser("judge", help="two answer files -> reviews")
    command.set_defaults(run=partial(judge, teachers=teachers))
    add_judge_flags(command)
    command = commands.add_parser("report", help="reviews -> relative scores")
    command.set_defaults(run=report)
    add_report_flags(command)
    return parser


def main():
    run_command(make_parser())


if __name__ == "__main__":
    main()
