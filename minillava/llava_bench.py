"""Answers to any question file, batched and resumable.

Official format (model_vqa.py), a line per answer:
    {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
"""
import json
import os
import uuid
from pathlib import Path

from tqdm import tqdm


def read_jsonl(path):
    """A file of one JSON object per line -> list of dicts; ValueError names the line that is none."""
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                raise ValueError(f"line {number} of {path} is not JSON") from None
            if not isinstance(rows[-1], dict):
                raise ValueError(f"line {number} of {path} is not a JSON object")
    return rows


def answers_so_far(questions, path, model_id, metadata):
    """{question_id: answer line} of an earlier run; ValueError if it answered something else or in another way."""
    path = Path(path)
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):  # the run was killed while it wrote a line: that one is asked again
        path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
    prompts, done = {q["question_id"]: q["prompt"] for q in questions}, {}
    for row in read_jsonl(path):
        if prompts.get(row.get("question_id")) != row.get("prompt"):
            raise ValueError(f"{path} answers other questions, such as {row.get('question_id')!r}; name another file")
        if (row.get("model_id"), row.get("metadata")) != (model_id, metadata):
            raise ValueError(f"{path} was answered by {row.get('model_id')} with {row.get('metadata')}, this run is "
                             f"{model_id} with {metadata}; name another file")
        done[row["question_id"]] = row
    return done


def answer_file(questions, path, answer, model_id, metadata, batch=8):
    """Appends an answer to `path` for every question that it does not answer yet; returns all, in the questions' order.

    questions: [{"question_id", "prompt", ...}], ids unique; answer: list of questions -> list of texts, one batch.
    Questions of like length run together, and the finished file is put into their order, which official scripts rely on.
    """
    ids = [q["question_id"] for q in questions]
    if len(set(ids)) < len(ids):
        raise ValueError(f"question_id {next(i for i in ids if ids.count(i) > 1)!r} occurs twice")
    done = answers_so_far(questions, path, model_id, metadata)
    todo = sorted((q for q in questions if q["question_id"] not in done), key=lambda q: len(q["prompt"]))
    with open(path, "a", encoding="utf-8") as out, tqdm(total=len(ids), initial=len(done), desc="answers") as bar:
        for start in range(0, len(todo), batch):
            asked = todo[start : start + batch]
            for question, text in zip(asked, answer(asked), strict=True):
                row = {"question_id": question["question_id"], "prompt": question["prompt"], "text": text,
                       "answer_id": uuid.uuid4().hex, "model_id": model_id, "metadata": metadata}
                out.write(json.dumps(row) + "\n")
                done[row["question_id"]] = row
            out.flush()
            bar.update(len(asked))
    if todo:
        ordered = Path(f"{path}.tmp")
        ordered.write_text("".join(json.dumps(done[i]) + "\n" for i in ids), encoding="utf-8")
        os.replace(ordered, path)
    return [done[i] for i in ids]
