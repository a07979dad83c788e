"""Question files: the official jsonl, and MMBench's .tsv, which has its pictures inside.

A question is {"question_id", "prompt", "image" (a file's name) or "base64" (the file itself),
...}; the prompt is the text of the file with the wish for the form of the answer.
"""
import base64
import csv
import io
import json
import sys
from functools import partial
from itertools import takewhile
from pathlib import Path

from minillava.evaluation.scienceqa import OPTION_LETTER
from minillava.files import read_jsonl, read_text
from minillava.images import load_image

# LLaVA-1.5's wishes for the form of an answer (its table 7); official files have theirs already
FORMS = {
    "short_answer": "Answer the question using a single word or phrase.",
    "option_letter": OPTION_LETTER,
    "option_letter_cn": "请直接回答选项字母。",
}
# what pandas, and with it the official code, reads as an empty cell ("Na", sodium, is none)
EMPTY = {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
         "<NA>", "N/A", "NA", "NULL", "n/a", "null"}


def read_questions(path, form=None, all_rounds=False):
    """A question file -> questions, each with its prompt; form: a key of FORMS, or None.

    all_rounds: MMBench's questions with several options are asked once for each order of them.
    """
    if Path(path).suffix == ".tsv":
        rows = [question for row in read_tsv(path) for question in from_mmbench(row, all_rounds)]
    elif Path(path).suffix == ".json" and read_text(path).lstrip().startswith("["):
        rows = read_llava_json(path)
    else:
        names = "question_id", "text", "image", "category"
        rows = [{name: row[name] for name in names if name in row} for row in read_jsonl(path)]
    for number, row in enumerate(rows, 1):
        has_id = type(row.get("question_id")) in (str, int)
        if not has_id or not isinstance(row.get("text"), str):
            raise ValueError(f"question {number} of {path} has no question_id or no text")
        if not isinstance(row.get("image") or "", str):
            raise ValueError(f"question {number} of {path}: its image is no file's name")
        row["prompt"] = row["text"]
        if form and not row["text"].endswith(FORMS[form]):
            row["prompt"] = f"{row['text']}\n{FORMS[form]}"
    if not rows:
        raise ValueError(f"{path} holds no questions")
    return rows


def read_llava_json(path):
    """LLaVA-JSON, as llava_test_CQM-A.json of ScienceQA is -> questions: each one's first turn."""
    questions = []
    try:
        for sample in json.loads(read_text(path)):
            text = sample["conversations"][0]["value"].replace("<image>", "").strip()
            questions.append({"question_id": sample["id"], "text": text})
            if "image" in sample:
                questions[-1]["image"] = sample["image"]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{path} is no array of samples with an id and conversations") from None
    return questions


def without_wish(text):
    """The question alone, without what it says at its end of the form of the answer."""
    for wish in FORMS.values():
        text = text.strip().removesuffix(wish)
    return text.strip()


def questions_by_id(path):
    """{question_id as text: question}, with the "texts" of all that share the id, as in MME."""
    if path is None:
        return {}
    if Path(path).suffix == ".tsv":
        return {row["index"]: row | {"texts": [row.get("question") or ""]}
                for row in read_tsv(path)}
    questions = {}
    for row in read_questions(path):
        first = questions.setdefault(str(row["question_id"]), row | {"texts": []})
        first["texts"].append(row["text"])
    return questions


def check_asked(path, row, texts):
    """ValueError unless one of the `texts`, those of the question, was asked for this answer row.

    The ids of a benchmark are small numbers, as those of another are: the text has to stand in the
    prompt. What states no prompt, such as a review, is known by its id alone.
    """
    prompt = row.get("prompt")
    alone = [without_wish(text.replace("<image>", "")) for text in texts or ()]
    if not alone or prompt and not any(text in str(prompt) for text in alone):
        asked = f", {str(prompt).strip()[:60]!r}" if prompt else ""
        raise ValueError(f"{path} answers other questions, such as {row.get('question_id')!r}"
                         f"{asked}; is it another benchmark's, or split's?")


# ----------------------------------------------------------------------------------- MMBench's .tsv

def read_tsv(path):
    """A table with a line of names -> its rows, {name: cell}."""
    csv.field_size_limit(sys.maxsize)  # a picture is one cell
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; is it the benchmark's .tsv?") from None
    for number, row in enumerate(rows, 2):
        if not str(row.get("index") or "").isdigit():
            raise ValueError(f"line {number} of {path} has no number as its index; "
                             "download it again")
    if not rows:
        raise ValueError(f"{path} holds no questions")
    pictures = {row["index"]: row.get("image") for row in rows}
    for row in rows:  # in some files the later rounds name the row that has the picture
        row["image"] = pictures.get(row.get("image"), row.get("image"))
    return rows


def from_mmbench(row, all_rounds=False):
    """A row of the .tsv -> its question in the official layout: hint, question, lettered options.

    With all_rounds as many questions as it has options, which move up by one in each.
    """
    options = options_of(row)
    letters = list("ABCD"[: len(options)])
    rounds = []
    for number in range(max(1, len(options)) if all_rounds else 1):
        lines = [row["hint"]] if has(row, "hint") else []
        lines.append(row.get("question") or "")
        lines += [f"{letter}. {option}" for letter, option in zip("ABCD", options)]
        rounds.append({
            "question_id": int(row["index"]), "text": "\n".join(lines),
            "base64": row.get("image") or "",
            "extra": {"round_id": number, "options": options, "option_char": letters},
        })
        options = options[1:] + options[:1]
        letters = letters[1:] + letters[:1]
    return rounds


def options_of(row):
    """The options up to the first that a question does not have."""
    return [row[letter] for letter in takewhile(partial(has, row), "ABCD")]


def has(row, name):
    cell = row.get(name) or ""
    return cell not in EMPTY and cell.lower() not in ("nan", "none")


# ----------------------------------------------------------------------------------------- pictures

def check_pictures(questions, folder):
    """ValueError names the first picture that is not in the folder: rather now than after hours."""
    missing = [question for question in questions if not is_there(question.get("image"), folder)]
    if missing:
        name, i = missing[0]["image"], missing[0]["question_id"]
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        where = f"--images {folder}" if folder else "a folder: name it with --images"
        raise ValueError(f"{name}, of question {i}, is not in {where}{more}")


def is_there(name, folder):
    if not name:
        return True
    name = Path(name)
    outside = name.is_absolute() or ".." in name.parts
    return folder is not None and not outside and (Path(folder) / name).is_file()


def picture_of(question, folder=None):
    """A question -> its picture, or None; OSError or ValueError if it is damaged."""
    if "base64" in question:
        return decoded_picture(question["base64"])
    if question.get("image"):
        return load_image(Path(folder or "", question["image"]))
    return None


def decoded_picture(text):
    """base64 -> picture."""
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
        return load_image(io.BytesIO(data))
    except (OSError, ValueError):  # of base64 (binascii.Error) or of the image
        raise ValueError("its picture in the .tsv is missing or damaged") from None


def with_control(questions, control):
    """The same questions, to see what is guessed.

    control: "none" without a picture, "another" with that of the next question that has another.
    """
    if control == "none":
        return [without_picture(question) for question in questions]
    pictures = [question.get("image") or question.get("base64") for question in questions]
    distinct = list(dict.fromkeys(picture for picture in pictures if picture))
    if len(distinct) < 2:
        raise ValueError("--control another needs questions about two pictures at least")
    following = dict(zip(distinct, distinct[1:] + distinct[:1]))
    changed = []
    for question, picture in zip(questions, pictures):
        kind = "base64" if "base64" in question else "image"
        changed.append(question | {kind: following[picture]} if picture else question)
    return changed


def without_picture(question):
    return {name: value for name, value in question.items() if name not in ("image", "base64")}
