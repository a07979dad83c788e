"""Answers to any question file: official files in, official files out."""
import base64
import io
import json
import random
import re

import pytest
from PIL import Image

from minillava.checkpoint import load_llava
from minillava.evaluation.__main__ import form_of, main
from minillava.evaluation.answers import answer_file, fingerprint
from minillava.evaluation.asking import share_of_this_process
from minillava.evaluation.benchmarks import BENCHMARKS
from minillava.evaluation.questions import FORMS, check_pictures, picture_of, read_questions, with_control
from minillava.toy import world
from tests.comparing import read_jsonl, write_jsonl, write_tsv


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
    assert sorted(asked) == [0, 1] and read_jsonl(path) == rows
    assert [(row["question_id"], row["text"]) for row in rows] == [(i, f"answer {i}") for i in range(6)]
    assert set(rows[0]) == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
    assert answer_file(questions, path, None, "m", {}) == rows  # nothing left to ask
    for other in ([{"question_id": 0, "prompt": "other"}], questions[:1]):
        with pytest.raises(ValueError, match="answers other questions"):
            answer_file(other, path, answer, "m", {})
    with pytest.raises(ValueError, match="was answered by m"):
        answer_file(questions, path, answer, "other model", {})


@pytest.mark.parametrize("text", ['{"results": {"1": 0}}', '{"question_id": 0, "prompt": "?"}\n[', "one\ntwo"])
def test_another_file_keeps_its_last_line(tmp_path, text):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(ValueError, match="a.jsonl is no answer file"):
        answer_file([{"question_id": 0, "prompt": "?"}], tmp_path / "a.jsonl", say, "m", {})
    assert (tmp_path / "a.jsonl").read_text() == text


def test_two_questions_may_share_an_id_as_in_mme_but_not_their_text_too(tmp_path):
    questions = [{"question_id": "color/1.png", "prompt": text} for text in ("Is it red?", "Is it blue?")]
    rows = answer_file(questions, tmp_path / "a.jsonl", lambda asked: [q["prompt"] for q in asked], "m", {})
    assert [(row["question_id"], row["text"]) for row in rows] == [("color/1.png", q["prompt"]) for q in questions]
    with pytest.raises(ValueError, match="'color/1.png' occurs twice"):
        answer_file(questions + questions[:1], tmp_path / "b.jsonl", None, "m", {})


def ten_questions():
    return [{"question_id": i, "prompt": "x" * (i % 4)} for i in range(10)]


def say(asked):
    """An answer that tells with whom it was asked, as one in 16 bits does a little."""
    return [f"{question['question_id']} among {len(asked)}" for question in asked]


def test_a_run_in_shares_ends_in_the_file_of_a_run_in_one_piece(tmp_path):
    whole, shared = tmp_path / "whole.jsonl", tmp_path / "shared.jsonl"
    rows = answer_file(ten_questions(), whole, say, "m", {}, batch=3)
    assert answer_file(ten_questions(), shared, say, "m", {}, batch=3, share=(2, 3)) is None
    assert answer_file(ten_questions(), shared, say, "m", {}, batch=3, share=(0, 3)) is None and not shared.exists()
    assert answer_file(ten_questions(), shared, say, "m", {}, batch=3, share=(1, 3)) == rows
    assert shared.read_bytes() == whole.read_bytes() and len(list(tmp_path.iterdir())) == 2


def test_a_run_in_shares_goes_on_in_another_number_of_them(tmp_path):
    path, asked = tmp_path / "a.jsonl", []

    def remember(batch):
        asked.extend(question["question_id"] for question in batch)
        return say(batch)

    assert answer_file(ten_questions(), path, remember, "m", {}, batch=3, share=(0, 2)) is None
    with open(tmp_path / "a.jsonl.part-1-of-2", "w") as file:
        file.write('{"question_id": 1, "te')  # another share, killed while it wrote or still at work
    answer_file(ten_questions(), path, remember, "m", {}, batch=3)
    assert sorted(asked) == list(range(10))
    assert [row["question_id"] for row in read_jsonl(path)] == list(range(10)) and len(list(tmp_path.iterdir())) == 1


def test_torchrun_says_which_share_is_whose(monkeypatch):
    assert share_of_this_process(1, 0) == (0, 1) and share_of_this_process(4, 3) == (3, 4)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert share_of_this_process(1, 0) == (1, 2)
    with pytest.raises(ValueError, match="--chunk-idx counts from 0 to 3"):
        share_of_this_process(4, 4)


def test_what_cannot_be_answered_costs_no_other_its_answer_and_is_asked_again(tmp_path):
    mended = []

    def answer(batch):
        if any(question["question_id"] == 4 for question in batch) and not mended:
            raise ValueError("the image is damaged")
        return say(batch)

    rows = answer_file(ten_questions(), tmp_path / "a.jsonl", answer, "m", {}, batch=5)
    assert [row["question_id"] for row in rows if row["text"] == ""] == [4]
    assert rows[4]["error"] == "the image is damaged"
    assert answer_file(ten_questions(), tmp_path / "a.jsonl", answer, "m", {}, batch=5) == rows
    mended.append(True)
    rows = answer_file(ten_questions(), tmp_path / "a.jsonl", answer, "m", {}, batch=5)
    assert rows[4]["text"] == "4 among 5" and not any("error" in row for row in rows)
    assert read_jsonl(tmp_path / "a.jsonl") == rows


def test_answers_of_other_weights_are_not_mixed_with_new_ones(tmp_path):
    model, _ = load_llava(device="cpu")
    before = fingerprint(model)
    assert fingerprint(load_llava(device="cpu")[0]) == before
    weight = model.language_model.layers[0].mlp.up_proj.weight
    weight.data[3, 5] += 1  # one number of millions
    after = fingerprint(model)
    assert after != before
    answer_file(ten_questions(), tmp_path / "a.jsonl", say, "m", {"fingerprint": before})
    with pytest.raises(ValueError, match=f"was answered by m with fingerprint {before} \\(now {after}\\)"):
        answer_file(ten_questions(), tmp_path / "a.jsonl", say, "m", {"fingerprint": after})


def test_controls_show_no_picture_or_another(tmp_path):
    questions = [{"question_id": i, "prompt": "?", "image": name} for i, name in enumerate("aab")]
    questions.append({"question_id": 3, "prompt": "?"})
    assert [q.get("image") for q in with_control(questions, "another")] == ["b", "b", "a", None]
    assert not any("image" in q or "base64" in q for q in with_control(questions, "none"))
    with pytest.raises(ValueError, match="two pictures"):
        with_control(questions[:2], "another")


def test_a_wish_for_the_form_is_added_once(tmp_path):
    wish = FORMS["short_answer"]
    path = write_jsonl(tmp_path / "q.jsonl", [{"question_id": 1, "text": "What?", "image": "a.png"},
                                              {"question_id": 2, "text": f"What?\n{wish}", "image": "a.png"}])
    assert [row["prompt"] for row in read_questions(path, "short_answer")] == [f"What?\n{wish}"] * 2
    assert [row["prompt"] for row in read_questions(path)] == ["What?", f"What?\n{wish}"]


def png(color):
    data = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def test_mmbench_is_read_as_it_is_published(tmp_path, run):
    write_tsv(tmp_path / "mm.tsv", [
        {"index": 241, "question": "Which?", "hint": 'A "long"\nhint', "A": "one", "B": "two", "C": "nan", "D": "",
         "image": png("red")},
        {"index": 242, "question": "Who?", "hint": "nan", "A": "a", "B": "b", "C": "c", "D": "d", "image": png("blue")}])
    first, second = read_questions(tmp_path / "mm.tsv", "option_letter")
    assert first["prompt"] == f'A "long"\nhint\nWhich?\nA. one\nB. two\n{FORMS["option_letter"]}'
    assert second["prompt"] == f'Who?\nA. a\nB. b\nC. c\nD. d\n{FORMS["option_letter"]}'
    done = run("answer", "--questions", tmp_path / "mm.tsv", "--out", tmp_path / "a.jsonl", "--option-letter-cn",
               "--max-new-tokens", 8)
    assert done.returncode == 0, done.err
    rows = read_jsonl(tmp_path / "a.jsonl")
    assert [row["question_id"] for row in rows] == [241, 242] and rows[0]["prompt"].endswith("\n请直接回答选项字母。")


def test_mmbench_is_asked_in_every_order_of_its_options_and_without_a_hint(tmp_path):
    write_tsv(tmp_path / "mm.tsv", [
        {"index": 5, "question": "Which?", "A": "one", "B": "two", "C": "three", "image": png("red")},
        {"index": 1000005, "question": "Which?", "A": "two", "B": "NaN", "C": "lost", "image": "5"}])
    *rounds, last = read_questions(tmp_path / "mm.tsv", all_rounds=True)
    assert [row["prompt"] for row in rounds] == ["Which?\nA. one\nB. two\nC. three", "Which?\nA. two\nB. three\nC. one",
                                                 "Which?\nA. three\nB. one\nC. two"]
    assert rounds[1]["extra"] == {"round_id": 1, "options": ["two", "three", "one"], "option_char": ["B", "C", "A"]}
    assert last["prompt"] == "Which?\nA. two"  # officially, the options end at the first that is empty
    assert picture_of(last).getpixel((0, 0)) == (255, 0, 0)  # the row that it names has it


def test_a_separator_of_lines_may_stand_in_a_question(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question_id": 1, "text": "What\u2028now?"}\n', encoding="utf-8")
    assert read_questions(path)[0]["prompt"] == "What\u2028now?"


def test_the_question_file_of_scienceqa_is_llava_json(tmp_path):
    path = tmp_path / "q.json"
    path.write_text(json.dumps([{"id": "4", "image": "4/image.png", "conversations": [
        {"from": "human", "value": "<image>\nWhich?\nA. x\nB. y"}, {"from": "gpt", "value": "B"}]}]))
    assert read_questions(path, "option_letter") == [{
        "question_id": "4", "text": "Which?\nA. x\nB. y", "image": "4/image.png",
        "prompt": f"Which?\nA. x\nB. y\n{FORMS['option_letter']}"}]
    path.write_text('[{"id": 1}]')
    with pytest.raises(ValueError, match="no array of samples"):
        read_questions(path)


def test_one_damaged_picture_or_endless_prompt_is_named_and_counted(tmp_path, run):
    write_tsv(tmp_path / "mm.tsv", [
        {"index": index, "question": "Which?", "hint": hint, "A": "a", "B": "b", "image": picture}
        for index, picture, hint in ((1, png("red"), ""), (2, "&&&&", ""), (3, "", ""), (4, png("red"), "word " * 3000),
                                     (5, base64.b64encode(b"no image").decode(), ""))])
    typed = ["answer", "mmbench", "--questions", tmp_path / "mm.tsv", "--max-new-tokens", 2, "--dtype", "float32",
             "--template", "llava_v1", "--out", tmp_path / "made/a.jsonl"]
    done = run(*typed)
    assert done.returncode == 0 and "4 of 5 questions have an empty answer" in done.err
    assert "no answer to question 4: a prompt of" in done.err and "object at" not in done.err
    assert done.err.count("its picture in the .tsv is missing or damaged") == 3
    rows = read_jsonl(tmp_path / "made/a.jsonl")
    assert [bool(row["text"]) for row in rows] == [True, False, False, False, False]
    assert rows[0]["round_id"] == 0 and rows[0]["option_char"] == ["A", "B"]
    assert rows[0]["metadata"] | {"fingerprint": ""} == {
        "benchmark": "mmbench", "template": "llava_v1", "control": None, "temperature": 0.0, "top_p": 1.0, "seed": 0,
        "max_new_tokens": 2, "batch": 8, "dtype": "float32", "fingerprint": ""}
    again = run(*typed[:-1], tmp_path / "b.jsonl", "--limit", 1, "--control", "none", "--temperature", 2, "--seed", 3)
    assert again.returncode == 0 and len(read_jsonl(tmp_path / "b.jsonl")) == 1, again.err
    other = run(*typed[:-1], tmp_path / "b.jsonl", "--limit", 1, "--control", "none", "--temperature", 2, "--seed", 4)
    assert other.returncode == 2 and "seed 3 (now 4)" in other.err


def test_the_benchmark_says_the_form_of_an_answer_unless_a_flag_does():
    none = dict.fromkeys(FORMS)
    assert form_of(none, BENCHMARKS["pope"]) == "short_answer" and form_of(none, None) is None
    assert form_of(none | {"short_answer": False}, BENCHMARKS["pope"]) is None
    assert form_of(none | {"option_letter": True}, BENCHMARKS["pope"]) == "option_letter"
    assert form_of(none, BENCHMARKS["mm-vet"]) is None


@pytest.mark.parametrize("command", ["answer", "score", "upload", "judge", "report", "table"])
def test_help_shows_examples(run, command):
    done = run(command, "--help")
    assert done.returncode == 0 and f"... {command} " in done.out


def test_the_miniature_answers_a_question_file(tmp_path, run):
    rng = random.Random(0)
    scene = [("red circle", world.make_box(0, rng)), ("blue star", world.make_box(5, rng))]
    world.draw(scene, rng).save(tmp_path / "scene.png")
    questions = write_jsonl(tmp_path / "q.jsonl", [
        {"question_id": 0, "image": "scene.png", "text": "How many shapes are there?", "category": "conv"},
        {"question_id": 1, "text": "What is a star?"},
        {"question_id": 2, "image": "scene.png", "text": "What shape is at the top-left?"}])
    done = run("answer", "--questions", questions, "--images", tmp_path, "--out", tmp_path / "a.jsonl")
    assert done.returncode == 0 and done.out == f"3 answers are in {tmp_path / 'a.jsonl'}\n"
    assert [row["text"] for row in read_jsonl(tmp_path / "a.jsonl")] == [
        "There are two shapes.", "A star is a shape with five points.", "The shape at the top-left is a circle."]
    metadata = read_jsonl(tmp_path / "a.jsonl")[0]["metadata"]
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
    ([{"question_id": 1, "text": "Q", "image": 5}], [], "its image is no file's name"),
    ([{"question_id": True, "text": "Q"}], [], "has no question_id"),
    ([{"question_id": 1, "text": "Q"}] * 2, [], "question_id 1 occurs twice"),
    ([{"question_id": i, "text": "Q", "image": "x.png"} for i in range(3)], [], "x.png, of question 0, is not in"),
    ([{"question_id": 1, "text": "Q"}], ["--control", "another"], "two pictures"),
    ([{"question_id": 1, "text": "Q"}], ["--temperature", "nan"], "the temperature is 0 or more, not nan"),
    ([{"question_id": 1, "text": "Q"}], ["--top-p", "0"], "top-p is above 0"),
    ([{"question_id": 1, "text": "Q"}], ["--max-new-tokens", "0"], "max-new-tokens"),
    ([{"question_id": 1, "text": "Q"}], ["--limit", "0"], "--limit"),
    ([{"question_id": 1, "text": "Q"}], ["--num-chunks", "2", "--chunk-idx", "2"], "--chunk-idx"),
    ([], [], "holds no questions"),
    ([{"question_id": 1, "text": "Q"}], ["--batch", "0"], "--batch"),
    ([{"question_id": 1, "text": "Q"}], ["--model", "nowhere"], "nowhere"),
    ([{"question_id": 1, "text": "Q"}], ["--model", "nowhere", "--out", "."], "--out . is a folder"),
    ([{"question_id": 1, "text": "Q"}], ["--out", "{folder}/q.jsonl"], "q.jsonl is what is read"),
])
def test_what_is_wrong_with_the_questions_is_one_line(tmp_path, run, rows, typed, message):
    (tmp_path / "images").mkdir()
    done = run("answer", "--questions", write_jsonl(tmp_path / "q.jsonl", rows), "--images", tmp_path / "images",
               "--out", tmp_path / "a.jsonl", *(word.format(folder=tmp_path) for word in typed))
    assert done.returncode == 2 and message in done.err and done.err.splitlines()[-1].startswith("error: ")


def test_who_asks_without_pictures_needs_none(tmp_path, run):
    questions = write_jsonl(tmp_path / "q.jsonl", [{"question_id": 1, "text": "Q", "image": "nowhere.png"}])
    done = run("answer", "--questions", questions, "--control", "none", "--max-new-tokens", 2, "--out", tmp_path / "a.jsonl")
    assert done.returncode == 0 and read_jsonl(tmp_path / "a.jsonl")[0]["text"], done.err


def test_who_names_no_folder_of_pictures_is_told_to():
    with pytest.raises(ValueError, match=r"a.png, of question 1, is not in a folder: name it with --images \(and 1 more\)"):
        check_pictures([{"question_id": i, "image": "a.png"} for i in (1, 2)], None)
