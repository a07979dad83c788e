"""Reviews become relative scores: what the candidate reached, in per cent of the reference (section 5.1)."""
import argparse
from pathlib import Path

import numpy as np

from minillava.evaluation.judge import parse_scores, parse_scores_officially
from minillava.files import read_jsonl


def add_report_flags(parser):
    parser.add_argument("reviews", type=Path, nargs="+")
    parser.add_argument("--strict-official", action=argparse.BooleanOptionalAction, default=False,
                        help="the official arithmetic and output")


def report(args):
    for path in args.reviews:
        reviews = read_reviews(path)
        print(path)
        if args.strict_official:
            print_officially(reviews)
        else:
            print_table(reviews)
    return 0


def read_reviews(path):
    reviews = read_jsonl(path)
    for review in reviews:
        if "category" not in review or not ("content" in review or "tuple" in review):
            reviews = []
    if not reviews:
        raise ValueError(f"{path} holds no reviews: a line has category, content and tuple")
    return reviews


# ------------------------------------------------------------------------------------------ scores

def scores_of(review):
    """-> [reference, candidate], or None where the judge named none."""
    scores = parse_scores(review["content"]) if "content" in review else review["tuple"]
    return scores if scores and min(scores) >= 0 else None


def swapped_scores_of(review):
    """The same of the review with the answers changed over, again [reference, candidate]."""
    scores = parse_scores(review.get("swapped_content", ""))
    return scores[::-1] if scores else None


def by_category(reviews, pairs):
    """{category: scores [N,2]}, "all" among them, the categories in order; a pair of None is left out."""
    groups = {"all": []} | {review["category"]: [] for review in reviews}
    for review, pair in zip(reviews, pairs):
        if pair is not None:
            groups["all"].append(pair)
            groups[review["category"]].append(pair)
    return {name: np.asarray(groups[name], dtype=float).reshape(-1, 2) for name in sorted(groups)}


def relative(pairs):
    """[...,N,2] -> the candidate's mean score in per cent of the reference's, [...]."""
    reference, candidate = np.moveaxis(pairs.mean(-2), -1, 0)
    return 100 * candidate / np.maximum(reference, 1e-9)


def interval(pairs, draws=2000):
    """95 % interval of `relative`, by bootstrap over the questions."""
    drawn = np.random.default_rng(0).integers(0, len(pairs), (draws, len(pairs)))
    return np.percentile(relative(pairs[drawn]), (2.5, 97.5))


# ---------------------------------------------------------------------------------------- printing

def print_officially(reviews):
    """What the official summary prints: failures count as -1 : -1, means are rounded before they are divided."""
    pairs = [parse_scores_officially(review["content"]) if "content" in review else review["tuple"]
             for review in reviews]
    for name, scores in by_category(reviews, pairs).items():
        reference, candidate = (round(mean, 3) for mean in scores.mean(0).tolist())
        share = round(candidate / reference * 100, 1) if reference else "nan"
        print(f"{name} {share} {round(reference * 10, 1)} {round(candidate * 10, 1)}")


def print_table(reviews):
    """The table of the paper: per category the candidate's score in per cent of the reference's."""
    straight = [scores_of(review) for review in reviews]
    swapped = [swapped_scores_of(review) for review in reviews]
    both_orders = any("swapped_content" in review for review in reviews)
    pairs = straight
    if both_orders:  # their mean, where both are there
        pairs = [np.mean([one, other], 0) if one and other else None
                 for one, other in zip(straight, swapped)]

    print(f"{'category':20} relative   95 % interval  reference  candidate  reviews  failed")
    asked = by_category(reviews, [(0, 0)] * len(reviews))
    for name, scores in by_category(reviews, pairs).items():
        print(table_line(name, scores, len(asked[name]) - len(scores)))
    if both_orders:
        print_position_bias([(one, other) for one, other in zip(straight, swapped) if one and other])


def table_line(name, scores, failed):
    cells = f"{'-':>9}{'-':>16}{'-':>11}{'-':>11}"
    if len(scores):
        low, high = interval(scores)
        reference, candidate = 10 * scores.mean(0)
        cells = (f"{relative(scores):9.1f}{f'{low:.1f} - {high:.1f}':>16}"
                 f"{reference:11.1f}{candidate:11.1f}")
    return f"{name:20}{cells}{len(scores):9}{failed:8}"


def print_position_bias(judged):
    """judged: scores in the first order and with the answers changed over, each [reference, candidate]."""
    if not judged:
        return
    straight, swapped = np.moveaxis(np.asarray(judged), 1, 0)  # [N,2] each
    gains = straight - swapped  # the reference stood first in `straight`, the candidate in `swapped`
    gain = np.mean((gains[:, 0] - gains[:, 1]) / 2)
    leads = (straight[:, 0] - straight[:, 1]) * (swapped[:, 0] - swapped[:, 1])
    print(f"position bias: an answer gets {gain:+.2f} points for standing first; {(leads < 0).sum()} of "
          f"{len(judged)} verdicts turn round when the answers change places")
