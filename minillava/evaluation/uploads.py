"""The files that the benchmarks' servers take, as LLaVA-1.5's converters write them.

An upload function takes (answers, questions, out) and writes the file.
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


def upload_vizwiz(answers, questions, out):
    for i, question in questions.items():
        if "image" not in question:
            raise ValueError(f"question {i!r} names no image; is the question file VizWiz's?")
    texts = texts_by_id(answers)
    rows = [{"image": question["image"], "answer": normalize(texts[i])}
            for i, question in questions.items()]
    write(out, json.dumps(rows))


def upload_gqa(answers, questions, out):
    rows = [{"questionId": row["question_id"], "prediction": gqa_text(row["text"])}
            for row in answers]
    write(out, json.dumps(rows))


def upload_seed(answers, questions, out):
    texts = texts_by_id(answers)
    rows = [{"question_id": i, "prediction": texts[i]} for i in questions]
    write_jsonl(out, rows)


def upload_mmvet(answers, questions, out):
    rows = {f"v1_{row['question_id']}": row["text"] for row in answers}
    write(out, json.dumps(rows, indent=2))
