"""ScienceQA's answers: the choice that a text settles on, and the files that hold answers."""
import json
import re

from minillava.evaluation.scienceqa import LETTERS
from minillava.files import read_jsonl, read_object, write


# --------------------------------------------------------------------------------- text -> a choice

def choice_of(text, count):
    """What an answer settles on: the index of one of `count` choices; -1 if it names none or two.

    The letter alone ("B", "B.", "(B)", or with more after it: "B. 12 cm"), else what follows "The
    answer is" or "ANSWER:", as often as it likes but always the same.
    """
    text = text.strip()
    alone = re.match(r"\(?([A-E])(?:\)?[.:]?$|\)?[.:] |\) )", text)
    if alone:
        letters = {alone[1]}
    else:
        letters = set(re.findall(r"(?i:the answer is|answer:)[\s*(]*([A-Z])\b", text))
    if len(letters) != 1:
        return -1
    return index_of_letter(letters.pop(), count)


def official_choice_of(text, count, shortcuts=True):
    """The same as eval_science_qa.py finds it, to the letter.

    The official scripts of the ensembles take no `shortcuts`: neither a letter alone nor "B. 12
    cm".
    """
    alone = text in list(LETTERS)
    leading = len(text) > 2 and text[0] in LETTERS and text[1:3] == ". "
    if shortcuts and (alone or leading):
        return index_of_letter(text[0], count)
    found = re.findall(r"The answer is ([A-Z]).", text)  # sic: the dot is any one character
    if len(found) != 1:
        return -1
    return index_of_letter(found[0], count)


def index_of_letter(letter, count):
    return LETTERS[:count].find(letter)


def choices_of(texts, problems, strict=False, shortcuts=True):
    """{id: text} -> {id: index of a choice, or -1}; strict: read as the official script reads."""
    chosen = {}
    for i, text in texts.items():
        count = len(problems[i]["choices"])
        if strict:
            chosen[i] = official_choice_of(text, count, shortcuts)
        else:
            chosen[i] = choice_of(text, count)
    return chosen


# ---------------------------------------------------------------------------------------- the files

def read_results(path, data, split, problems):
    """An answer file -> ({id: text}, {id: choice that the file itself states}, settings or None).

    Lines with question_id and text, or the official results: a JSON object with "results"
    (choices) or "outputs" (texts) or both. Its ids are held against the problems of ScienceQA's
    folder `data`.
    """
    results = official_results(path)
    if results is not None:
        (texts, stated), settings = results, None
    else:
        (texts, settings), stated = read_texts(path), {}
    if not texts and not stated:
        raise ValueError(f"{path} holds no answers")
    check_answers(path, texts, str, data, split, problems)
    check_answers(path, stated, int, data, split, problems)
    return texts, stated, settings


def official_results(path):
    """-> ("outputs", "results") of a JSON object, or None where the file is of another kind."""
    try:
        data = read_object(path)
    except ValueError:
        return None
    if "results" not in data and "outputs" not in data:
        return None
    texts, stated = data.get("outputs", {}), data.get("results", {})
    if not isinstance(texts, dict) or not isinstance(stated, dict):
        raise ValueError(f'{path}: "results" and "outputs" are objects, {{id: choice}} and '
                         "{id: text}")
    return texts, stated


def read_texts(path):
    """Answer lines -> ({id: text}, the settings that all of them state)."""
    rows = read_jsonl(path)
    texts = {}
    for row in rows:
        i = str(row.get("question_id"))
        if i in texts:
            raise ValueError(f"{path} has question {i} twice")
        texts[i] = row.get("text")
    settings = rows[0].get("metadata") if rows else None
    if any(row.get("metadata") != settings for row in rows):
        raise ValueError(f"{path} mixes answers of different settings, such as {settings}; "
                         "score them apart")
    return texts, settings


def check_answers(path, answers, kind, data, split, problems):
    for i, value in answers.items():
        if i not in problems:
            other = read_object(data / "problems.json").get(i)
            where = f"{data} does not know"
            if isinstance(other, dict):
                where = f"is of split {other.get('split')}, not {split}"
            raise ValueError(f"{path} answers question {i}, which {where}")
        if type(value) is not kind:
            raise ValueError(f"{path}: the answer to question {i} is {value!r:.40}, "
                             f"not {kind.__name__}")


def write_results(path, chosen, texts, problems):
    """A results file as the official scripts write it; chosen: {id: index of a choice}."""
    correct = sum(chosen[i] == problems[i]["answer"] for i in chosen)
    results = {
        "acc": 100 * correct / len(chosen), "correct": correct, "count": len(chosen),
        "results": chosen, "outputs": texts,
    }
    write(path, json.dumps(results, indent=2))
