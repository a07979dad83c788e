"""Reviews become relative scores."""
import argparse
from pathlib import Path

import numpy as np

from minillava.evaluation.judge import parse_scores, parse_scores_officially
from minillava.files import read_jsonl


def by_category(rows, pairs):
    """{category: [questions, 2]}, "all" among them, the categories in order."""
    groups = {name: [pair for row, pair in zip(rows, pairs) if name in ("all", row["category"]) and pair is not None]
              for name in ["all", *sorted({row["category"] for row in rows})]}
    return {name: np.asarray(groups[name], dtype=float).reshape(-1, 2) for name in sorted(groups)}


def relative(pairs):
    """[.., questions, 2] -> the candidate's mean score in per cent of the reference's, [..]."""
    first, second = np.moveaxis(pairs.mean(-2), -1, 0)
    return 100 * second / np.maximum(first, 1e-9)


def interval(pairs, draws=2000):
    """95 % interval of `relative`, by bootstrap over the questions."""
    drawn = np.random.default_rng(0).integers(0, len(pairs), (draws, len(pairs)))
    return np.percentile(relative(pairs[drawn]), (2.5, 97.5))


def official_lines(rows):
    """What the official summary prints: failures count as -1 : -1, means are rounded before they are divided."""
    pairs = [parse_scores_officially(row["content"]) if "content" in row else row["tuple"] for row in rows]
    for name, scores in by_category(rows, pairs).items():
        first, second = (round(mean, 3) for mean in scores.mean(0).tolist())
        share = round(second / first * 100, 1) if first else "nan"
        yield f"{name} {share} {round(first * 10, 1)} {round(second * 10, 1)}"


def show(rows):
    """The table of the paper: per category the candidate's score in per cent of the reference's."""
    pairs = [parse_scores(row["content"]) if "content" in row else row["tuple"] for row in rows]
    pairs = [pair if pair and min(pair) >= 0 else None for pair in pairs]
    both = any("swapped_content" in row for row in rows)
    if both:  # the mean of the two orders, where both are there
        swapped = [(parse_scores(row.get("swapped_content", "")) or [])[::-1] for row in rows]
        straight, pairs = pairs, [np.mean((pair, other), 0) if pair and other else None
                                  for pair, other in zip(pairs, swapped)]
    print(f"{'category':20} relative   95 % interval  reference  candidate  reviews  failed")
    for name, scores in by_category(rows, pairs).items():
        cells = f"{'-':>9}{'-':>16}{'-':>11}{'-':>11}"
        if len(scores):
            (first, second), (low, high) = 10 * scores.mean(0), interval(scores)
            cells = f"{relative(scores):9.1f}{f'{low:.1f} - {high:.1f}':>16}{first:11.1f}{second:11.1f}"
        asked = sum(name in ("all", row["category"]) for row in rows)
        print(f"{name:20}{cells}{len(scores):9}{asked - len(scores):8}")
    good = [(a, b) for a, b, pair in zip(straight, swapped, pairs) if pair is not None] if both else []
    if good:
        gain = np.mean([(a[0] - b[0] + b[1] - a[1]) / 2 for a, b in good])  # each answer's points, first less second
        turned = sum((a[0] - a[1]) * (b[0] - b[1]) < 0 for a, b in good)
        print(f"position bias: an answer gets {gain:+.2f} points for standing first; {turned} of {len(good)} verdicts "
              "turn round when the answers change places")


def add_report_flags(parser):
    parser.add_argument("reviews", type=Path, nargs="+")
    parser.add_argument("--strict-official", action=argparse.BooleanOptionalAction, default=False,
                        help="the official arithmetic and output")


def report(args):
    for path in args.reviews:
        rows = read_jsonl(path)
        if not rows or not all("category" in row and ("content" in row or "tuple" in row) for row in rows):
            raise ValueError(f"{path} holds no reviews: a line has category, content and tuple")
        print(path)
        if args.strict_official:
            print("\n".join(official_lines(rows)))
        else:
            show(rows)
    return 0
