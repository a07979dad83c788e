"""The template judge, in GPT-4's place: LLaVA-Bench for the toy world (section 5.1)."""
import random
import re

from minillava.toy.objects import read
from minillava.toy.questions import DETAIL, QUESTIONS, ask_detail

TASK = re.compile(r"\[Question\]\n(.*?)\n\n"
                  r"\[Assistant 1\]\n(.*?)\n\n\[End of Assistant 1\]\n\n"
                  r"\[Assistant 2\]\n(.*?)\n\n\[End of Assistant 2\]", re.S)


def judge(text, boxes):
    """A judge's task -> two scores in a line, and a line of reasons for each.

    An answer gets 1, and up to 9 more: the more of its statements are right, and the fewer are
    missing, by their harmonic mean (F1). ValueError if it is no question of the toy world.
    """
    question, *answers = TASK.search(text).groups()
    truth = statements(true_answer(question, read(boxes)))
    scores, reasons = [], []
    for number, answer in enumerate(answers, 1):
        said = statements(answer)
        right = len(said & truth)
        scores.append(f"{mark(said, truth):.3g}")
        reasons.append(f"Assistant {number}: {len(said)} statements, {right} of them "
                       f"among the {len(truth)} of the annotations.")
    return "\n".join([" ".join(scores), *reasons])


def mark(said, truth):
    """Two sets of statements -> 1 to 10."""
    f1 = 2 * len(said & truth) / (len(said) + len(truth))
    return 1 + 9 * f1


def true_answer(question, things):
    """What the teacher would answer, were it to come upon this question."""
    rng = random.Random(0)
    if question in DETAIL:
        return ask_detail(things, rng)[1]
    for _ in range(3000):
        for ask in QUESTIONS.values():
            pair = ask(things, rng)
            if pair and pair[0] == question:
                return pair[1]
    raise ValueError(f"the toy judge does not know the question {question!r}")


def statements(answer):
    """'There are two stars, so one shape would be left.' -> its parts, a set."""
    return set(re.split(r"(?<=\.) |, so ", answer))
