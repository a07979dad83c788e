"""Answer files: a line for each question, written as it comes, whole and in order at the end.

    {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}

as the official converters read them. A run that was stopped goes on; a run may be shared among
several processes, each of which writes a part beside the file, and whoever is the last joins the
parts.
"""
import glob
import json
import uuid
import zlib
from collections import Counter
from pathlib import Path

import torch
from tqdm import tqdm

from minillava.files import read_jsonl, read_text, read_whole_lines, write

ROW = '{"question_id": '  # how each line begins


def read_answers(path):
    """An answer file -> rows; ValueError if a line is no answer, or answers a question again."""
    rows = read_jsonl(path)
    kinds = {"question_id": (str, int), "prompt": (str,), "text": (str,),
             "metadata": (dict, type(None)), "round_id": (int, type(None))}
    seen = set()
    for number, row in enumerate(rows, 1):
        for field, allowed in kinds.items():
            if type(row.get(field)) not in allowed:
                raise ValueError(f"line {number} of {path} is no answer: its {field} is "
                                 f"{row.get(field)!r:.40}")
        key = str(row["question_id"]), row["prompt"], row.get("round_id")
        if key in seen:
            raise ValueError(f"{path} has question {row['question_id']!r} twice")
        seen.add(key)
    return rows


def fingerprint(model):
    """A checksum over all weights: whatever is trained on has another one."""
    total = 0
    for _, tensor in sorted(model.state_dict().items()):
        numbers = tensor.detach().flatten().contiguous().cpu().view(torch.uint8)
        total = zlib.crc32(numbers.numpy(), total)
    return f"{total:08x}"


def answer_file(questions, path, answer, model_id, metadata, batch=8, share=(0, 1), quiet=False):
    """Answers into `path` every question that it does not answer yet; returns all rows, in order.

    questions: [{"question_id", "prompt", ...}]; two may share an id, as in MME, but then not the
    prompt. answer: list of questions -> list of texts, one batch. share: (index, count), the part
    of the work that is done here; None is returned while other parts are under way.
    """
    check_unique(questions)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    index, count = share
    own = path if count == 1 else path.with_name(f"{path.name}.part-{index}-of-{count}")
    mend(own)
    done = answers_so_far(questions, path, model_id, metadata)

    # The same batches always, in every share and after every stop: in 16 bits, and where answers
    # are drawn, an answer depends a little on its neighbours.
    batches = batches_of(questions, batch)[index::count]
    todo = [asked for asked in batches if any(is_open(question, done) for question in asked)]
    total = sum(map(len, batches))
    initial = total - sum(map(len, todo))
    with open(own, "a", encoding="utf-8") as out, \
            tqdm(total=total, initial=initial, desc="answers", disable=quiet) as bar:
        for asked in todo:
            for question, (text, error) in zip(asked, texts_of(asked, answer), strict=True):
                row = answer_row(question, text, error, model_id, metadata)
                out.write(json.dumps(row) + "\n")
            out.flush()
            bar.update(len(asked))
    return finish(questions, path, model_id, metadata)


def key_of(row):
    return row["question_id"], row["prompt"]


def check_unique(questions):
    twice = [key for key, times in Counter(map(key_of, questions)).items() if times > 1]
    if twice:
        raise ValueError(f"question_id {twice[0][0]!r} occurs twice")


def batches_of(questions, size):
    """Questions of like length run together: a short one need not wait for a long one."""
    ordered = sorted(questions, key=lambda question: len(question["prompt"]))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def texts_of(asked, answer):
    """-> [(text, None)], or ("", the reason) for a question that cannot be answered.

    What stops a batch, a damaged picture or an over-long prompt, is sought among its questions one
    by one, so that it costs no other its answer.
    """
    try:
        return [(text, None) for text in answer(asked)]
    except (OSError, ValueError) as error:
        if len(asked) == 1:
            return [("", str(error))]
    return [pair for question in asked for pair in texts_of([question], answer)]


def answer_row(question, text, error, model_id, metadata):
    row = {"question_id": question["question_id"], "prompt": question["prompt"], "text": text}
    row |= question.get("extra", {})  # MMBench's round and options
    if error is not None:
        row["error"] = error
    row |= {"model_id": model_id, "metadata": metadata}
    # the same answer has the same id: a run in shares ends in the same file as one in a piece
    answer_id = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(row)).hex
    return row | {"answer_id": answer_id}


# ---------------------------------------------------------------------------- what is there already

def is_open(question, done):
    """Not answered yet, or in vain: the picture may have been mended since."""
    row = done.get(key_of(question))
    return row is None or "error" in row


def answers_so_far(questions, path, model_id, metadata):
    """{(question_id, prompt): row} of the file and its parts.

    ValueError if something else was answered there, or otherwise: by other weights, say.
    """
    asked = set(map(key_of, questions))
    done = {}
    for file in [path, *parts_of(path)]:
        for row in read_whole_lines(file):
            key = row.get("question_id"), row.get("prompt")
            if key not in asked:
                raise ValueError(f"{file} answers other questions, such as {key[0]!r}; "
                                 "name another file")
            if (row.get("model_id"), row.get("metadata")) != (model_id, metadata):
                there = difference(row, model_id, metadata)
                raise ValueError(f"{file} was answered by {row.get('model_id')} with {there}; "
                                 "name another file")
            if key not in done or "error" in done[key]:
                done[key] = row
    return done


def difference(row, model_id, metadata):
    """What an earlier answer was made with that is otherwise now, in words."""
    now, then = metadata, row.get("metadata") or {}
    changed = [f"{name} {then.get(name)} (now {now.get(name)})"
               for name in now | then if now.get(name) != then.get(name)]
    return ", ".join(changed) or f"the same settings (now by {model_id})"


def mend(path):
    """Takes away the half line that a killed run has left: that question is asked again."""
    text = read_text(path) if path.exists() else ""
    whole, newline, half = text.rpartition("\n")
    if not half:
        return
    if half[: len(ROW)] != ROW[: len(half)]:
        raise ValueError(f"{path} is no answer file; name another file")
    write(path, whole + newline)


# ---------------------------------------------------------------------------------- several at work

def parts_of(path):
    return sorted(path.parent.glob(f"{glob.escape(path.name)}.part-*-of-*[0-9]"))


def finish(questions, path, model_id, metadata):
    """Joins the parts once everything is answered, in the questions' order -> rows; else None."""
    done = answers_so_far(questions, path, model_id, metadata)
    if any(key_of(question) not in done for question in questions):
        return None
    rows = [done[key_of(question)] for question in questions]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if not path.exists() or read_text(path) != text:
        write(path, text)
    for part in parts_of(path):
        part.unlink(missing_ok=True)
    return rows
