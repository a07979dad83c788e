"""The papers' ablations in miniature: what their decisions are worth in the toy world.

    python -m minillava.explain.ablations --quick        # one seed
    python -m minillava.explain.ablations                # three seeds
    python -m minillava.explain.ablations --only layer stage-1

Each row trains the miniature twice or more, by train.py, from the toy CLIP and the toy Vicuna, with
one thing changed. What one row has trained another does not train again, and after any stop the
same command goes on. Printed at the end: the paper's figures and the miniature's, and whether the
miniature says the same (verdict.py says by which test); beside it a picture for each row.
"""
import argparse
import json
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from textwrap import fill

from minillava.explain.ablation_charts import loss_line, row_chart
from minillava.explain.ablation_rows import ROWS
from minillava.explain.ablation_runs import Seed, Size, losses_of, result_of
from minillava.explain.verdict import interval, verdict
from minillava.files import read_json, write
from minillava.terminal import command_parser, errors_in_one_line

TERMS = """
The miniature's figures: whole answers exactly right, in %, and their deviation over the seeds. A
third of the questions is of conversation, detail and reasoning each; --only format asks for
sentences and words, --only reasoning is of the toy ScienceQA, --only data has the toy judge's
marks. A difference stands with its interval of 95 %; a verdict wants it to leave out 0."""

TO_PERCENT = {"right": 100, "judged": 10}  # an answer is right (1) or not; the best mark is 10


def main():
    args = parse_arguments()
    names = args.only or list(ROWS)
    size = Size(args.scenes, args.heldout, args.questions, args.problems)
    seeds = [Seed(number, args.out / f"seed-{number}", size)
             for number in range(1 if args.quick else args.seeds)]
    with errors_in_one_line("stopped; the same command goes on where it was"):
        uneven = args.questions % 8  # types of a conversation's questions
        if args.heldout < 2 or uneven or min(asdict(size).values()) < 1 or args.seeds < 1:
            raise ValueError("--heldout is 2 or more, --questions a multiple of 8, "
                             "the others 1 or more")
        refuse_other_size(args.out, size)
        for seed in seeds:
            for run in dict.fromkeys(run for name in names for run in ROWS[name].runs):
                result_of(run, seed)
        print(TERMS)
        for name in names:
            report(ROWS[name], name, seeds, args.out / f"{name}.png")


def parse_arguments():
    parser = command_parser("explain.ablations", __doc__)
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW",
                        help=f"of {', '.join(ROWS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action=argparse.BooleanOptionalAction, default=False,
                        help="one seed")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    for name, meaning in (("scenes", "to learn from"), ("heldout", "scenes"),
                          ("questions", "of conversation, detail and reasoning each"),
                          ("problems", "of ScienceQA, to learn from")):
        parser.add_argument(f"--{name}", type=int, default=getattr(Size, name), help=meaning)
    return parser.parse_args()


def refuse_other_size(out, size):
    path = out / "size.json"
    if path.exists() and read_json(path) != asdict(size):
        raise ValueError(f"the runs in {out} are of another size, {read_json(path)}: give the same "
                         "--scenes and so on, or name another folder with --out")
    write(path, json.dumps(asdict(size)))


# --------------------------------------------------------------------------------- what came of it

def report(row, name, seeds, picture):
    """Prints a row and draws its picture."""
    results = {run: [result_of(run, seed) for seed in seeds] for run in row.runs}
    bars = [(run, paper, *mean_and_spread(results[run], row.score))
            for run, paper in zip(row.runs, row.paper)]
    print_row(row, name, results, bars)

    curves = [("loss of the last stage, seed 0", "log",
               [loss_line(losses_of(run, seeds[0])) for run in row.runs])]
    if "curve" in results[row.runs[0]][0]:
        lines = [mean_curve(results[run]) for run in row.runs]
        print_curves(row.runs, lines)
        curves.append(("share of right answers on the way", "linear", lines))
    row_chart(row.title, bars, curves, picture)


def print_row(row, name, results, bars):
    preferred, *_ = row.runs
    seeds = len(results[preferred])
    asked = len(results[preferred][0]["right"])
    print(f"\n{row.title} (--only {name}; seeds: {seeds}, questions for each: {asked})")
    print(f"  {'':26}{'paper':>8}{'miniature':>16}{'difference':>16}    the paper: {row.measure}")
    for run, paper, mean, spread in bars:
        compared = ""
        if run != preferred:
            compared = comparison(results[preferred], results[run], row.score)
        figure = f"{mean:.1f}" if spread is None else f"{mean:.1f} ± {spread:.1f}"
        print(f"  {run:26}{paper or '-':>8}{figure:>16}{compared}")
    print(fill(f"A miniature may differ: {row.differs}", 96, initial_indent="  ",
               subsequent_indent="  "))


def mean_and_spread(results, score):
    """Of the seeds, in %: one seed has no spread, None."""
    means = [TO_PERCENT[score] * fmean(result[score]) for result in results]
    return fmean(means), stdev(means) if len(means) > 1 else None


def comparison(preferred, other, score):
    """'   +5.1 ± 1.2  reproduces': of two runs' results, seed by seed."""
    differences = []
    for one, two in zip(preferred, other):
        pairs = zip(one[score], two[score], strict=True)
        differences.append([TO_PERCENT[score] * (x - y) for x, y in pairs])
    mean, half = interval(differences)
    return f"{mean:+10.1f} ± {half:.1f}  {verdict(mean, half)}"


def mean_curve(results):
    """Of all seeds: [(step, share right)]."""
    steps = [step for step, _ in results[0]["curve"]]
    shares = zip(*([share for _, share in result["curve"]] for result in results))
    return [(step, fmean(here)) for step, here in zip(steps, shares)]


def print_curves(runs, lines):
    """How soon each gets there, and when the first passes where the second ends."""
    for run, line in zip(runs, lines):
        on_the_way = ", ".join(f"{100 * share:.1f} after {step}" for step, share in line)
        print(f"  {run:26}{on_the_way} steps")
    end = lines[1][-1][1]
    passed = [step for step, share in lines[0] if share >= end]
    if passed:
        print(f"  {runs[0]} is where {runs[1]} ends after {passed[0]} of {lines[0][-1][0]} steps "
              "(the paper: 6 epochs against 12)")


if __name__ == "__main__":
    main()
