"""What a difference between two runs is worth: an interval of 95 %, and a verdict in words.

Both runs of a seed learn from the same scenes and answer the same held-out questions, so their
answers are compared question by question. The difference may be chance in two ways, and the wider
interval counts:

    other questions   the deviation of the differences, over all questions of all seeds
    another seed      the deviation of the seeds' mean differences, by Student's t; where there is
                      one seed alone, nothing can be said of this one
"""
from statistics import fmean, stdev

NORMAL = 1.96
# Student's t for 2, 3, ... seeds, at 97.5 %
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def interval(by_seed):
    """[[a difference for each question] for each seed] -> (mean, half the width of 95 %)."""
    means = [fmean(differences) for differences in by_seed]
    pooled = [difference for differences in by_seed for difference in differences]
    half = NORMAL * stdev(pooled) / len(pooled) ** 0.5
    if len(means) > 1:
        t = STUDENT[min(len(means) - 2, len(STUDENT) - 1)]
        half = max(half, t * stdev(means) / len(means) ** 0.5)
    return fmean(means), half


def verdict(mean, half):
    """Of a difference that is above 0 in the paper."""
    if mean - half > 0:
        return "reproduces"
    if mean + half < 0:
        return "does not: the other way round"
    return "too small to tell"
