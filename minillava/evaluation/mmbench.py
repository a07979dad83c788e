"""MMBench (Liu et al. 2023): its table of questions is scored, or filled in for its server.

The dev file states the answers. Each question stands in it several times, its options moved up by
one each time, under indices that differ by a million: 241, 1000241, ... It counts only where all
of them are answered right ("circular").
"""
import csv
import io
from collections import Counter
from pathlib import Path

from minillava.evaluation.questions import has
from minillava.evaluation.scienceqa_answers import choice_of
from minillava.evaluation.scores import Score, grouped, join_labels, percent
from minillava.evaluation.xlsx import xlsx
from minillava.files import write_bytes

CIRCLE = 1_000_000
NOT_UPLOADED = ("hint", "category", "source", "image", "comment", "l2-category", "texts")


def score_mmbench(answers, questions, labels):
    """Accuracy over questions as they are first asked, and over circles; letters alone count.

    questions: {index: row of the dev .tsv}.
    """
    def question_of(row):
        return questions[str(row["question_id"])]

    if not any(has(question, "answer") for question in questions.values()):
        raise ValueError("the questions state no answers: only the dev file can be scored here")
    labelled, unlabelled = join_labels(answers, lambda row: cell_of(question_of(row), "answer"))

    orders = Counter(int(index) % CIRCLE for index in questions)  # in which a question is asked
    groups = grouped(labelled, lambda pair: question_of(pair[0]).get("l2-category") or "all")
    rows = {name: accuracies(pairs, orders) for name, pairs in sorted(groups.items())}
    rows["all"] = accuracies(labelled, orders)
    if not rows["all"]["questions"]:
        raise ValueError("no question is answered in every order of its options, as its accuracy "
                         "wants it; answer the others too")
    asked = {str(row["question_id"]) for row, _ in labelled}
    return Score(rows["all"]["circular"], rows, len(asked), unlabelled)


def accuracies(pairs, orders):
    first = [pair for pair in pairs if is_first(pair[0])]
    circles = grouped(pairs, lambda pair: int(pair[0]["question_id"]) % CIRCLE)
    whole = [circle for number, circle in circles.items() if len(circle) >= orders[number]]
    return {
        "plain": percent(is_right(*pair) for pair in first),
        "circular": percent(all(is_right(*pair) for pair in circle) for circle in whole),
        "questions": len(whole),
    }


def is_first(row):
    """Whether this is the order in which the question stands first."""
    return int(row["question_id"]) < CIRCLE and not row.get("round_id")


def is_right(row, label):
    """The letter that is said, among the options as they stood in this round."""
    letters = row.get("option_char")
    if not isinstance(letters, list):  # of one round alone
        letters = list("ABCD")
    choice = choice_of(row["text"], len(letters))
    return choice >= 0 and letters[choice] == label


# ------------------------------------------------------------------------------------------- upload

def upload_mmbench(answers, questions, out):
    """Writes the server's table: the .tsv less some columns, and a column "prediction"."""
    texts = {str(row["question_id"]): row["text"] for row in answers if not row.get("round_id")}
    names = [name for name in next(iter(questions.values())) if name not in NOT_UPLOADED]
    rows = [names[:6] + ["prediction"] + names[6:]]
    for index, question in questions.items():
        cells = [int(index) if name == "index" else cell_of(question, name) for name in names]
        rows.append(cells[:6] + [texts.get(index)] + cells[6:])

    out = Path(out)
    if out.suffix == ".xlsx":
        data = xlsx(rows)
    elif out.suffix == ".tsv":
        data = tsv(rows)
    else:
        raise ValueError(f"MMBench takes a .xlsx, or a .tsv to look into; {out} is neither")
    write_bytes(out, data)


def cell_of(question, name):
    return question[name] if has(question, name) else None


def tsv(rows):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
