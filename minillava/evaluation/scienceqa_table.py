"""ScienceQA's table: accuracy by subject, by what comes with the question, by grade (table 7)."""
from pathlib import Path

from minillava.evaluation.answers import read_answers
from minillava.evaluation.scienceqa import SPLIT_SIZES, check_problem
from minillava.evaluation.scienceqa_answers import choices_of, official_results
from minillava.evaluation.scores import Score, join_labels, percent
from minillava.files import read_object
from minillava.terminal import aligned

LOWER_GRADES = [f"grade{n}" for n in range(1, 7)]
HIGHER_GRADES = [f"grade{n}" for n in range(7, 13)]
GROUPS = {
    "NAT": lambda problem: problem["subject"] == "natural science",
    "SOC": lambda problem: problem["subject"] == "social science",
    "LAN": lambda problem: problem["subject"] == "language science",
    "TXT": lambda problem: bool(problem["hint"]),
    "IMG": lambda problem: bool(problem["image"]),
    "NO": lambda problem: not problem["hint"] and not problem["image"],
    "G1-6": lambda problem: problem["grade"] in LOWER_GRADES,
    "G7-12": lambda problem: problem["grade"] in HIGHER_GRADES,
    "Avg": lambda problem: True,
}


def alone(texts, stated, control, problems, strict=False):
    """One model's answers -> ({name: {id: choice}}, lines to print below their table).

    texts: {id: text}; stated: {id: choice} where the file itself states it, else {}; control: {id:
    text} of the same questions with another image, or {}. strict: as the official script reads and
    counts.
    """
    read = choices_of(texts, problems, strict)
    rows = {"answers": stated or read}
    if control:
        rows["another image"] = choices_of(control, problems, strict)
    if strict:  # a question without an answer has a wrong one
        rows = {name: {i: chosen.get(i, -1) for i in problems} for name, chosen in rows.items()}

    notes = []
    if texts:
        lost = sum(choice < 0 for choice in read.values())
        notes.append(f"unparsable: {lost} of {len(texts)}")
        if lost and stated:
            notes[-1] += "; for these the choice counts that the file states"
        elif lost:
            notes[-1] += "; they count as wrong"
    if strict:
        notes.append(official_line(rows["answers"], problems))
    return rows, notes


def official_line(chosen, problems):
    """What eval_science_qa.py prints."""
    rights = rights_of(chosen, problems)
    shown = [right for i, right in rights.items() if problems[i]["image"]]
    return (f"Total: {len(rights)}, Correct: {sum(rights.values())}, "
            f"Accuracy: {percent(rights.values()):.2f}%, IMG-Accuracy: {percent(shown):.2f}%")


def rights_of(chosen, problems):
    """{id: choice} -> {id: whether it is right}"""
    return {i: choice == problems[i]["answer"] for i, choice in chosen.items()}


def report(rows, notes, problems, split, drawn=False, topics=False):
    """Prints how much was scored, the table, and the notes; rows as `alone` gives them."""
    scored = {i: problems[i] for i in next(iter(rows.values()))}
    shares = shares_right(rows, problems)
    print(f"\n{coverage(len(scored), problems, split, drawn)}")
    print(table(scored, shares))
    if topics:
        print(f"\n{topics_table(scored, shares)}")
    for note in notes:
        print(note)


def shares_right(rows, problems):
    """{name: {id: choice}} -> {name: {id: 1 if right, else 0}}, and a guess's chance.

    All rows answer the same questions.
    """
    shares = {name: rights_of(chosen, problems) for name, chosen in rows.items()}
    scored = next(iter(rows.values()))
    shares["guessing"] = {i: 1 / len(problems[i]["choices"]) for i in scored}
    return shares


def coverage(scored, problems, split, drawn):
    """How much of a split is scored, as a line; drawn: the questions are not ScienceQA's own."""
    own = len(problems) if drawn else SPLIT_SIZES.get(split, len(problems))
    line = f"scored: {scored} of {len(problems)} questions of split {split}"
    if own != len(problems):
        line += f" (ScienceQA's own {split} has {own})"
    return line


def table(problems, shares):
    """The paper's table 7 as text, in per cent; shares as `shares_right` gives them."""
    members = {group: [i for i in problems if belongs(problems[i])]
               for group, belongs in GROUPS.items()}
    return aligned(cells(members, shares))


def topics_table(problems, shares):
    """A line per topic instead of a column per group of questions."""
    names = sorted({problem["topic"] for problem in problems.values()})
    members = {name: [i for i in problems if problems[i]["topic"] == name] for name in names}
    return aligned(list(zip(*cells(members, shares))))


def cells(members, shares):
    """{group: ids} -> rows of text: the groups' names, their sizes, per cent right. No ids: "-"."""
    rows = [["", *members], ["questions", *(str(len(ids)) for ids in members.values())]]
    for name, right in shares.items():
        row = [name]
        for ids in members.values():
            row.append(f"{100 * sum(right[i] for i in ids) / len(ids):.2f}" if ids else "-")
        rows.append(row)
    return rows


def read_scienceqa_answers(path):
    """Answer lines, or the official results with their "outputs" -> answer rows."""
    results = official_results(path)
    if results is None:
        return read_answers(path)
    texts, _ = results
    return [{"question_id": i, "prompt": "", "text": text} for i, text in texts.items()]


def score_scienceqa(answers, questions, folder):
    """The figures of the table, read as the official script reads; LLaVA-1.5 states that of IMG."""
    problems = read_object(Path(folder, "problems.json"))  # of all splits: trainval mixes two
    labelled, unlabelled = join_labels(answers, lambda row: problems.get(str(row["question_id"])))
    for row, problem in labelled:
        check_problem(row["question_id"], problem)
    texts = {str(row["question_id"]): row["text"] for row, _ in labelled}
    rights = rights_of(choices_of(texts, problems, strict=True), problems)

    figures = {}
    for group, belongs in GROUPS.items():
        members = [i for i in rights if belongs(problems[i])]
        if members:
            figures[group] = percent(rights[i] for i in members)
    if "IMG" not in figures:
        raise ValueError("no answered question has an image, and LLaVA-1.5's figure is of those; "
                         "eval_scienceqa.py --score-only shows the others")
    return Score(figures["IMG"], {"all": figures}, len(labelled), unlabelled)
