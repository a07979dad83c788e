"""ScienceQA's answers are read, scored and put together with a teacher's (section 5.2)."""
import re

from minillava.evaluation.scienceqa import LETTERS, texts


def choice_of(text, count):
    """What an answer settles on: the index of one of `count` choices, or -1 if it names none, or two.

    The letter alone ("B", "B.", "(B)", or with more after it: "B. 12 cm"), else what follows "The answer is" or
    "ANSWER:", as often as it likes but always the same.
    """
    text = text.strip()
    alone = re.match(r"\(?([A-E])(?:\)?[.:]?$|\)?[.:] |\) )", text)
    letters = {alone[1]} if alone else set(re.findall(r"(?i:the answer is|answer:)[\s*(]*([A-Z])\b", text))
    index = "ABCDEFGHIJKLMNOPQRSTUVWXYZ".index(letters.pop()) if len(letters) == 1 else -1
    return index if index < count else -1


def official_choice_of(text, count, shortcuts=True):
    """The same as eval_science_qa.py finds it, to the letter; the ensembles' scripts take no `shortcuts`."""
    if shortcuts and (text in list(LETTERS) or len(text) > 2 and text[0] in LETTERS and text[1:3] == ". "):
        letter = text[0]
    else:
        found = re.findall(r"The answer is ([A-Z]).", text)  # sic: the dot is any character, but one there must be
        letter = found[0] if len(found) == 1 else "FAILED"
    return LETTERS.index(letter) if letter in LETTERS[:count] else -1

GROUPS = {
    "NAT": lambda p: p["subject"] == "natural science", "SOC": lambda p: p["subject"] == "social science",
    "LAN": lambda p: p["subject"] == "language science",
    "TXT": lambda p: bool(p["hint"]), "IMG": lambda p: bool(p["image"]),
    "NO": lambda p: not p["hint"] and not p["image"],
    "G1-6": lambda p: p["grade"] in [f"grade{n}" for n in range(1, 7)],
    "G7-12": lambda p: p["grade"] in [f"grade{n}" for n in range(7, 13)],
    "Avg": lambda p: True,
}


def table(problems, rows, topics=False):
    """The paper's table 7 as text, in per cent; rows: {name: {id: 1 if right, 0 if wrong, or a chance between}}.

    With `topics`, a line per topic instead of a column per group of questions. A group without questions shows -.
    """
    if topics:
        names = sorted({p["topic"] for p in problems.values()})
        groups = {topic: lambda p, topic=topic: p["topic"] == topic for topic in names}
    else:
        groups = GROUPS
    members = {group: [i for i in problems if belongs(problems[i])] for group, belongs in groups.items()}
    cells = [["", *groups], ["questions", *(str(len(ids)) for ids in members.values())]]
    for name, right in rows.items():
        cells.append([name, *(f"{100 * sum(right[i] for i in ids) / len(ids):.2f}" if ids else "-"
                              for ids in members.values())])
    if topics:
        cells = list(zip(*cells))
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [[cell.rjust(width) for cell, width in zip(line, widths)] for line in cells]
    return "\n".join("  ".join([line[0].strip().ljust(widths[0]), *line[1:]]) for line in lines)


def complement(ours, teacher):
    """GPT-4's answer, or ours where it gave none; all {id: index of a choice, or -1}."""
    return {i: ours[i] if teacher[i] < 0 else teacher[i] for i in ours}


def disagree(ours, teacher):
    """Ids about which the judge is asked: the two differ, or neither gave an answer."""
    return [i for i in ours if ours[i] != teacher[i] or ours[i] < 0]


def judge_prompt(problem, ours, teacher):
    """The second query: the question, what the two said, and the request for an answer of its own."""
    unseen = "(The question comes with an image, which is not shown here.)\n" if problem["image"] else ""
    return (f"{texts(problem, 'CQM-A')[0]}\n{unseen}"
            f"\n[Answer 1]\n{ours or '(none)'}\n[End of Answer 1]\n"
            f"\n[Answer 2]\n{teacher or '(none)'}\n[End of Answer 2]\n\n"
            "The two answers to this question do not agree. Weigh the reasons that they give, think about the question "
            'yourself, and end with your own final answer in the words "The answer is X.", where X is the letter of '
            "one option. Use these words only once.")


def judged(ours, verdicts):
    """Where the two agree their answer, else the judge's, or ours where the judge gave none."""
    return {i: ours[i] if verdicts.get(i, -1) < 0 else verdicts[i] for i in ours}
