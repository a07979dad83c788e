"""Reviews become relative scores: the candidate's in per cent of the reference's (section 5.1)."""
import argparse
from pathlib import Path

import numpy as np

from minillava.evaluation.judge import parse_scores, parse_scores_officially
from minillava.files import read_jsonl
from minillava.terminal import aligned, printable

REVIEW_FILES = "gpt4_text", "review_", "reviews"  # how they are known in a folder


def add_report_flags(parser):
    flag = argparse.BooleanOptionalAction
    add = parser.add_argument
    add("reviews", type=Path, nargs="+", help="files, or folders that hold reviews*.jsonl")
    add("--strict-official", action=flag, default=False, help="the official arithmetic and output")
    add("--ignore", nargs="+", default=[], metavar="ID", help="questions to leave out")
    add("--select", nargs="+", default=[], metavar="TEXT",
        help="only the files whose names hold each of these texts")
    add("--average", action=flag, default=False, help="the mean over the files, too")


def report(paths, select=(), ignore=(), strict_official=False, average=False):
    """paths: files of reviews, or folders; select: what their names hold; ignore: question_ids."""
    averaged = []  # of each file {category: (relative, reference, candidate)}
    for path in review_files(paths, select):
        reviews = read_reviews(path, ignore)
        print(printable(path, keep=""))
        if strict_official:
            shares = official_scores(reviews)
            for name, figures in shares.items():
                print(printable(name, keep=""), *figures)
        else:
            verdicts = verdicts_of(reviews)
            pairs = [verdict and np.mean(verdict, 0) for verdict in verdicts]
            shares = mean_scores(by_category(reviews, pairs))
            print_table(reviews, pairs)
            print_position_bias(verdicts)
        averaged.append(shares)
    if average:
        print_average(averaged)


# ------------------------------------------------------------------------------------ files in

def review_files(paths, select):
    """Files and folders -> files; those of a folder are known by their names."""
    found = []
    for path in paths:
        if path.is_dir():
            inside = sorted(path.glob("*.jsonl"))
            found += [file for file in inside if file.name.startswith(REVIEW_FILES)]
        else:
            found.append(path)
    found = [path for path in found if all(text in path.name for text in select)]
    if not found:
        raise ValueError("there is no file of reviews under these names")
    return found


def read_reviews(path, ignore=()):
    """The lines of a review file, but for those of the ignored question ids."""
    reviews = read_jsonl(path)
    for number, review in enumerate(reviews, 1):
        if not is_review(review):
            raise ValueError(f"{path} holds no reviews: line {number} has no content and no tuple "
                             "of two scores, or a category that is no text")
    reviews = [review for review in reviews if str(review.get("question_id")) not in ignore]
    if not reviews:
        raise ValueError(f"{path} holds no reviews that are not ignored")
    return reviews


def is_review(review):
    texts = [review.get(name, "") for name in ("category", "content", "swapped_content")]
    if not all(isinstance(text, str) for text in texts):
        return False
    if "content" in review:
        return True
    scores = stated_scores(review)
    if not isinstance(scores, list) or len(scores) != 2:
        return False
    return all(type(score) in (int, float) for score in scores)


def stated_scores(review):
    """What the file itself says; "score" is what the oldest official files call it."""
    return review.get("tuple", review.get("score"))


# -------------------------------------------------------------------------------------- scores

def verdicts_of(reviews):
    """For each review what it scores, [[reference, candidate]], or None where the judge did not.

    Where the judge saw both orders, a verdict is two of these: the second with the answers changed
    over.
    """
    in_both_orders = any("swapped_content" in review for review in reviews)
    verdicts = []
    for review in reviews:
        verdict = [scores_of(review)]
        if in_both_orders:
            verdict.append(swapped_scores_of(review))
        verdicts.append(verdict if all(verdict) else None)
    return verdicts


def scores_of(review):
    """-> [reference, candidate], or None where the judge named none."""
    scores = parse_scores(review["content"]) if "content" in review else stated_scores(review)
    return scores if scores and min(scores) >= 0 else None


def swapped_scores_of(review):
    """The same of the review with the answers changed over, again [reference, candidate]."""
    scores = parse_scores(review.get("swapped_content", ""))
    return scores[::-1] if scores else None


def by_category(reviews, pairs):
    """{category: scores [N,2]}, "all" among them, in order; a pair of None is left out.

    A review without a category counts for "all" alone.
    """
    groups = {"all": []} | {review["category"]: [] for review in reviews if "category" in review}
    for review, pair in zip(reviews, pairs):
        if pair is not None:
            for name in {"all", review.get("category", "all")}:
                groups[name].append(pair)
    return {name: np.asarray(groups[name], dtype=float).reshape(-1, 2) for name in sorted(groups)}


def relative(pairs):
    """[...,N,2] -> the candidate's mean in per cent of the reference's, [...]; nan if that is 0."""
    reference, candidate = np.moveaxis(pairs.mean(-2), -1, 0)
    return 100 * candidate / np.where(reference > 0, reference, np.nan)


def interval(pairs, draws=2000):
    """95 % interval of `relative`, by bootstrap over the questions."""
    drawn = np.random.default_rng(0).integers(0, len(pairs), (draws, len(pairs)))
    return np.percentile(relative(pairs[drawn]), (2.5, 97.5))


def mean_scores(groups):
    """{category: scores [N,2]} -> {category: (relative, reference, candidate)}, both out of 100."""
    return {name: (relative(scores), *10 * scores.mean(0))
            for name, scores in groups.items() if len(scores)}


def official_scores(reviews):
    """The same as the official summary does it: failures count as -1 : -1, means are rounded before
    they are divided."""
    pairs = [parse_scores_officially(review["content"]) if "content" in review
             else stated_scores(review) for review in reviews]
    shares = {}
    for name, scores in by_category(reviews, pairs).items():
        reference, candidate = (round(mean, 3) for mean in scores.mean(0).tolist())
        share = round(candidate / reference * 100, 1) if reference else float("nan")
        shares[name] = share, round(reference * 10, 1), round(candidate * 10, 1)
    return shares


# ------------------------------------------------------------------------------------ printing

def print_table(reviews, pairs):
    """The table of the paper, and how sure it is."""
    rows = [["category", "relative", "95 % interval", "reference", "candidate", "reviews",
             "failed"]]
    asked = by_category(reviews, [(0, 0)] * len(reviews))
    for name, scores in by_category(reviews, pairs).items():
        failed = len(asked[name]) - len(scores)
        rows.append([name, *figures_of(scores), len(scores), failed])
    print(aligned(rows))


def figures_of(scores):
    """Scores [N,2] -> relative score, its interval, reference, candidate, in words."""
    if not len(scores):
        return ["-"] * 4
    reference, candidate = 10 * scores.mean(0)
    low, high = interval(scores)
    share = "-" if reference == 0 else f"{relative(scores):.1f}"
    between = "-" if np.isnan(low) else f"{low:.1f} - {high:.1f}"
    return [share, between, f"{reference:.1f}", f"{candidate:.1f}"]


def print_average(runs):
    """runs: of each file {category: (relative, reference, candidate)}"""
    print(f"mean of {len(runs)} files")
    rows = [["category", "relative", "lowest - highest", "reference", "candidate"]]
    for name in sorted({name for run in runs for name in run}):
        found = np.array([run[name] for run in runs if name in run])  # [runs,3]
        share, reference, candidate = (f"{mean:.1f}" for mean in found.mean(0))
        between = f"{found[:, 0].min():.1f} - {found[:, 0].max():.1f}"
        rows.append([name, share, between, reference, candidate])
    print(aligned(rows))


def print_position_bias(verdicts):
    """What standing first was worth, where the judge saw both orders."""
    judged = [verdict for verdict in verdicts if verdict and len(verdict) == 2]
    if not judged:
        return
    straight, swapped = np.moveaxis(np.asarray(judged), 1, 0)  # [N,2] each
    # the reference stood first in `straight`, the candidate in `swapped`
    gains = straight - swapped
    gain = np.mean((gains[:, 0] - gains[:, 1]) / 2)
    leads = (straight[:, 0] - straight[:, 1]) * (swapped[:, 0] - swapped[:, 1])
    print(f"position bias: an answer gets {gain:+.2f} points for standing first; "
          f"{(leads < 0).sum()} of {len(judged)} verdicts turn round when the answers change "
          "places")
