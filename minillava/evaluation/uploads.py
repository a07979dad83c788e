"""The files that the benchmarks' servers take, as LLaVA-1.5's converters write them.

An upload function takes (answers, questions, out), writes the file, and returns the ids of the
questions that have no answer.
"""
import json

from minillava.evaluation.scores import gqa_text
from minillava.evaluation.vqa_text import normalize
from minillava.files import write, write_jsonl


def texts_by_id(answers):
    return {str(row["question_id"]): row["text"] for row in answers}


def upload_vqav2(answers, questions, out):
    """All of test2015, in the order of its file; what was not asked has an empty answer."""
    texts = texts_by_id(answers)
    rows = [{"question_id": question["question_id"], "answer": normalize(texts.get(i, ""))}
            for i, question in questions.items()]
    write(out, json.dumps(rows))
    return [i for i in questions if i not in texts]


def upload_vizwiz(answers, questions, out):
    texts = whole(texts_by_id(answers), questions)
    rows = [{"image": question["image"], "answer": normalize(texts[i])}
            for i, question in questions.items()]
    write(out, json.dumps(rows))
    return []


def upload_gqa(answers, questions, out):
    texts = texts_by_id(answers)
    rows = [{"questionId": row["question_id"], "prediction": gqa_text(row["text"])}
            for row in answers]
    write(out, json.dumps(rows))
    return [i for i in questions if i not in texts]


def upload_seed(answers, questions, out):
    texts = whole(texts_by_id(answers), questions)
    rows = [{"question_id": i, "prediction": texts[i]} for i in questions]
    write_jsonl(out, rows)
    return []


def upload_mmvet(answers, questions, out):
    texts = texts_by_id(answers)
    rows = {f"v1_{row['question_id']}": row["text"] for row in answers}
    write(out, json.dumps(rows, indent=2))
    return [i for i in questions if i not in texts]


def whole(texts, questions):
    """The server takes all questions or nothing."""
    missing = [i for i in questions if i not in texts]
    if missing:
        raise ValueError(f"{len(missing)} of {len(questions)} questions have no answer, such as "
                         f"{missing[0]!r}; the server takes whole files: answer them first")
    return texts
