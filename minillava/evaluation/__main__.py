"""The benchmarks (section 5 of LLaVA-1.5): from the question file to the number.

    python -m minillava.evaluation answer pope --questions llava_pope_test.jsonl --images val2014 \\
        --model DIR --out answers/pope.jsonl
    python -m minillava.evaluation score pope --questions llava_pope_test.jsonl --labels coco \\
        --answers answers/pope.jsonl
    python -m minillava.evaluation upload vizwiz --questions llava_test.jsonl \\
        --answers answers/vizwiz.jsonl --out upload.json
    python -m minillava.evaluation table answers            # every score there, beside the paper's

and LLaVA-Bench (section 5.1), where a judge compares two answer files:

    python -m minillava.evaluation judge --questions questions.jsonl --context context.jsonl \\
        --answers gpt4.jsonl answers.jsonl --teacher openai --out reviews.jsonl
    python -m minillava.evaluation report reviews.jsonl

Files are the official ones, in and out. Benchmarks: {names}.
"""
import argparse
from functools import partial
from pathlib import Path

from minillava.evaluation.asking import (
    SETTINGS,
    add_model_flags,
    answer_questions,
    open_model,
    report_answers,
    share_of_this_process,
)
from minillava.evaluation.benchmarks import BENCHMARKS
from minillava.evaluation.judge import add_judge_flags, judge
from minillava.evaluation.questions import FORMS, check_pictures, read_questions
from minillava.evaluation.report import add_report_flags, report
from minillava.evaluation.scoring import score, table, upload
from minillava.generate import check_sampling
from minillava.instruct.command import check_output, open_from_flags, run_command

ANSWER = """
    ... answer pope --questions llava_pope_test.jsonl --images val2014 --model DIR --out pope.jsonl
    ... answer mmbench --questions mmbench_dev_20230712.tsv --model DIR --out answers/mmbench.jsonl
    ... answer --questions mine.jsonl --images DIR --short-answer --out answers.jsonl
    torchrun --nproc-per-node 8 -m minillava.evaluation answer vqav2 ...    # one file at the end

A question is a line {"question_id", "text", "image"}. What --out answers already is not asked
again.
"""
SCORE = """
    ... score pope --questions llava_pope_test.jsonl --labels coco --answers answers/pope.jsonl
    ... score mme --labels MME_Benchmark_release_version --answers answers/mme.jsonl
    ... score textvqa --labels TextVQA_0.5.1_val.json --answers answers/textvqa.jsonl
    ... score mmbench --questions mmbench_dev_20230712.tsv --answers answers/mmbench.jsonl
    ... score llava-bench --answers reviews.jsonl                            # what `judge` wrote

What --labels is:
"""
UPLOAD = """
    ... upload vizwiz --questions llava_test.jsonl --answers answers/vizwiz.jsonl --out vizwiz.json
    ... upload vqav2 --questions llava_vqav2_mscoco_test2015.jsonl --answers v2.jsonl --out v2.json
    ... upload mmbench --questions mmbench_test.tsv --answers answers/mmbench.jsonl --out mm.xlsx
"""
JUDGE = """
    ... judge --questions questions.jsonl --context context.jsonl \\
        --answers answers_gpt4.jsonl answers.jsonl --teacher openai --out reviews.jsonl
"""


def make_parser(teachers=None):
    """teachers: further ones for the judge, {name: ask}."""
    parser = argparse.ArgumentParser(
        prog="python -m minillava.evaluation",
        description=__doc__.format(names=", ".join(BENCHMARKS)),
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name, run, help, examples):
        command = commands.add_parser(name, help=help, description=f"{help}\n{examples}",
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
        command.set_defaults(run=run)
        return command

    add_answer_flags(add("answer", run_answer, "a question file and pictures -> answers", ANSWER))
    add_score_flags(add("score", run_score, "answers -> the number", SCORE + what_labels_are()))
    add_upload_flags(add("upload", run_upload, "answers -> the file that a server takes", UPLOAD))
    ask = partial(run_judge, teachers=teachers)
    add_judge_flags(add("judge", ask, "two answer files -> reviews", JUDGE), teachers)
    add_report_flags(add("report", run_report, "reviews -> relative scores",
                         "\n    ... report reviews.jsonl"))
    command = add("table", run_table, "every score in a folder, beside the paper's",
                  "\n    ... table answers")
    command.add_argument("folder", type=Path)
    return parser


def what_labels_are():
    return "\n".join(f"    {name:12} {benchmark.labels or 'needs none'}"
                     for name, benchmark in BENCHMARKS.items() if benchmark.score)


def add_score_flags(parser):
    add_file_flags(parser, [name for name, benchmark in BENCHMARKS.items() if benchmark.score])
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--out", type=Path, help="default: NAME.score.json beside the answers")


def add_upload_flags(parser):
    add_file_flags(parser, [name for name, benchmark in BENCHMARKS.items() if benchmark.upload])
    parser.add_argument("--out", type=Path, required=True, help="MMBench: .xlsx or .tsv")


def add_file_flags(parser, benchmarks):
    parser.add_argument("benchmark", choices=benchmarks)
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--questions", type=Path)


def add_answer_flags(parser):
    flag = argparse.BooleanOptionalAction
    add = parser.add_argument
    add("benchmark", nargs="?", choices=list(BENCHMARKS), help="says the form of the answers")
    add("--questions", type=Path, required=True)
    add("--images", type=Path, help="the folder that the questions' images are in")
    add("--out", type=Path, required=True)
    add_model_flags(parser)
    add("--control", choices=("none", "another"), help="ask without the picture, or with another's")
    form = parser.add_mutually_exclusive_group()
    for name, wish in FORMS.items():
        form.add_argument(f"--{name.replace('_', '-')}", action=flag, help=f'asks: "{wish}"')
    add("--all-rounds", action=flag, default=False,
        help="MMBench: once for each order of the options")
    add("--limit", type=int, help="the first so many questions alone")
    add("--max-new-tokens", type=int, help="default: the benchmark's, 128 or 1024")
    add("--temperature", type=float, default=0.0)
    add("--top-p", type=float, default=1.0)
    add("--seed", type=int, default=0, help="of the draws at a temperature above 0")
    add("--batch", type=int, default=8, help="questions at a time")
    add("--num-chunks", type=int, default=1, help="share the questions among so many processes")
    add("--chunk-idx", type=int, default=0, help="which of them this is, from 0")


def run_answer(args):
    benchmark = BENCHMARKS.get(args.benchmark)
    if args.max_new_tokens is None:
        args.max_new_tokens = benchmark.max_new_tokens if benchmark else 1024
    if args.batch < 1 or args.limit is not None and args.limit < 1:
        raise ValueError("--batch and --limit are at least 1")
    check_sampling(args.max_new_tokens, args.temperature, args.top_p)
    check_output(args.out, args.questions)
    share = share_of_this_process(args.num_chunks, args.chunk_idx)
    form = form_of({name: getattr(args, name) for name in FORMS}, benchmark)
    questions = read_questions(args.questions, form, args.all_rounds)[: args.limit]
    if args.control != "none":
        check_pictures(questions, args.images)  # before the model is read
    model, tokenizer = open_model(args.model, args.vision, args.language, args.projector,
                                  args.base, args.quantize, args.device, args.dtype)
    quiet = args.num_chunks == 1 and share[0] > 0  # of torchrun's ranks, one shows its progress
    name = str(args.model or args.language or "miniature")
    settings = {flag: getattr(args, flag) for flag in SETTINGS}
    rows = answer_questions(questions, args.out, model, tokenizer, args.images, name, settings,
                            share, quiet)
    report_answers(rows, args.out)


def form_of(flags, benchmark):
    """The key of FORMS that is asked for: a flag's, else the benchmark's unless a flag says no."""
    for name, asked in flags.items():
        if asked:
            return name
    wish = benchmark.wish if benchmark else None
    return None if flags.get(wish) is False else wish


def run_score(args):
    if args.out:
        check_output(args.out, args.answers, args.questions, args.labels)
    score(args.benchmark, args.answers, args.questions, args.labels, args.out)


def run_upload(args):
    check_output(args.out, args.answers, args.questions)
    upload(args.benchmark, args.answers, args.questions, args.out)


def run_judge(args, teachers):
    return judge(args.questions, args.context, args.answers, args.out,
                 open_judge=partial(open_from_flags, args.teacher, args, teachers),
                 rule_file=args.rule, system_file=args.system, both_orders=args.both_orders,
                 dry_run=args.dry_run)


def run_report(args):
    report(args.reviews, args.select, args.ignore, args.strict_official, args.average)


def run_table(args):
    table(args.folder)


def main():
    run_command(make_parser())


if __name__ == "__main__":
    main()
