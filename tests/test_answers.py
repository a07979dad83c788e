"""Answers to any question file: official files in, official files out."""
import base64
import csv
import io
import json
import random
import re

import pytest
from PIL import Image

from minillava.evaluation.__main__ import main
from minillava.evaluation.answers import answer_file, fingerprint
from minillava.evaluation.questions import FORMS, read_questions
from minillava.toy import world


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_can_be_stopped_and_gone_on_with(tmp_path):
    questions = [{"question_id": i, "prompt": "x" * (9 - i)} for i in range(6)]
    asked = []

    def answer(batch):
        asked.extend(question["question_id"] for question in batch)
        if len(asked) > 4:
            raise KeyboardInterrupt
        return [f"answer {question['question_id']}" for question in batch]

    path = tmp_path / "a.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answer_file(questions, path, answer, "m", {}, batch=2)
    assert asked == [5, 4, 3, 2, 1, 0]  # the short ones together
    with open(path, "a") as file:
        file.write('{"question_id": 1, "te')  # killed while it wrote
    asked.clear()
    rows = answer_file(questions, path, answer, "m", {}, batch=2)
    assert sorted(asked) == [0, 1] and read(path) == rows
    assert [(row["question_id"], row["text"]) for row in rows] == [(i, f"answer {i}") for i in range(6)]
    assert set(rows[0]) == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
    assert answer_file(questions, path, None, "m", {}) == rows  # nothing left to ask
    for other in ([{"question_id": 0, "prompt": "other"}], questions[:1]):
        with pytest.raises(ValueError, match="answers other questions"):
            answer_file(other, path, answer, "m", {})
    with pytest.raises(ValueError, match="was answered by m"):
        answer_file(questions, path, answer, "other model", {})


def test_two_questions_may_share_an_id_as_in_mme_but_not_their_text_too(tmp_path):
    questions = [{"question_id": "color/1.png", "prompt": text} for text in ("Is it red?", "Is it blue?")]
    rows = answer_file(questions, tmp_path / "a.jsonl", lambda asked: [q["prompt"] for q in asked], "m", {})
    assert [(row["question_id"], row["text"]) for row in rows] == [("color/1.png", q["prompt"]) for q in questions]
    with pytest.raises(ValueError, match="'color/1.png' occurs twice"):
        answer_file(questions + questions[:1], tmp_path / "b.jsonl", None, "m", {})


def test_a_wish_for_the_form_is_added_once(tmp_path):
    wish = FORMS["short_answer"]
    path = write(tmp_path / "q.jsonl", [{"question_id": 1, "text": "What?", "image": "a.png"},
                                        {"question_id": 2, "text": f"What?\n{wish}", "image": "a.png"}])
    assert [row["prompt"] for row in read_questions(path, "short_answer")] == [f"What?\n{wish}"] * 2
    assert [row["prompt"] for row in read_questions(path)] == ["What?", f"What?\n{wish}"]


def png(color):
    data = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def test_mmbench_is_read_as_it_is_published(tmp_path, run):
    with open(tmp_path / "mm.tsv", "w", newline="") as file:
        table = csv.DictWriter(file, ["index", "question", "hint", "A", "B", "C", "D", "image"], delimiter="\t")
        table.writeheader()
        table.writerow({"index": 241, "question": "Which?", "hint": 'A "long"\nhint', "A": "one", "B": "two",
                        "C": "nan", "D": "", "image": png("red")})
        table.writerow({"index": 242, "question": "Who?", "hint": "nan", "A": "a", "B": "b", "C": "c", "D": "d",
                        "image": png("blue")})
    first, second = read_questions(tmp_path / "mm.tsv", "option_letter")
    assert first["prompt"] == f'A "long"\nhint\nWhich?\nA. one\nB. two\n{FORMS["option_letter"]}'
    assert second["prompt"] == f'Who?\nA. a\nB. b\nC. c\nD. d\n{FORMS["option_letter"]}'
    done = run("answer", "--questions", tmp_path / "mm.tsv", "--out", tmp_path / "a.jsonl", "--option-letter-cn",
               "--max-new-tokens", 8)
    assert done.returncode == 0, done.err
    rows = read(tmp_path / "a.jsonl")
    assert [row["question_id"] for row in rows] == [241, 242] and rows[0]["prompt"].endswith("\n请直接回答选项字母。")


def test_the_miniature_answers_a_question_file(tmp_path, run):
    rng = random.Random(0)
    scene = [("red circle", world.make_box(0, rng)), ("blue star", world.make_box(5, rng))]
    world.draw(scene, rng).save(tmp_path / "scene.png")
    questions = write(tmp_path / "q.jsonl", [
        {"question_id": 0, "image": "scene.png", "text": "How many shapes are there?", "category": "conv"},
        {"question_id": 1, "text": "What is a star?"},
        {"question_id": 2, "image": "scene.png", "text": "What shape is at the top-left?"}])
    done = run("answer", "--questions", questions, "--images", tmp_path, "--out", tmp_path / "a.jsonl")
    assert done.returncode == 0 and done.out == f"3 answers are in {tmp_path / 'a.jsonl'}\n"
    assert [row["text"] for row in read(tmp_path / "a.jsonl")] == [
        "There are two shapes.", "A star is a shape with five points.", "The shape at the top-left is a circle."]
    metadata = read(tmp_path / "a.jsonl")[0]["metadata"]
    assert re.fullmatch("[0-9a-f]{8}", metadata.pop("fingerprint"))
    assert metadata == {"benchmark": None, "template": "vicuna_v1", "control": None, "temperature": 0.0, "top_p": 1.0,
                        "seed": 0, "max_new_tokens": 1024, "batch": 8, "dtype": "bfloat16"}
    again = run("answer", "--questions", questions, "--images", tmp_path, "--out", tmp_path / "a.jsonl",
                "--short-answer")
    assert again.returncode == 2 and "answers other questions" in again.err


@pytest.mark.parametrize("rows, typed, message", [
    ([{"question_id": 1, "text": "Q", "image": "nowhere.png"}], [], "nowhere.png, of question 1, is not in --images"),
    ([{"question_id": 1, "text": "Q", "image": "../q.jsonl"}], [], "../q.jsonl, of question 1, is not in --images"),
    ([{"text": "Q"}], [], "question 1 of"),
    ([{"question_id": 1, "text": "Q"}], ["--batch", "0"], "--batch"),
    ([{"question_id": 1, "text": "Q"}], ["--model", "nowhere"], "nowhere"),
])
def test_what_is_wrong_with_the_questions_is_one_line(tmp_path, run, rows, typed, message):
    (tmp_path / "images").mkdir()
    done = run("answer", "--questions", write(tmp_path / "q.jsonl", rows), "--images", tmp_path / "images", "--out",
               tmp_path / "a.jsonl", *typed)
    assert done.returncode == 2 and message in done.err and done.err.splitlines()[-1].startswith("error: ")
