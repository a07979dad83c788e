"""The judge and the report: official files in, official files out."""
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from minillava.evaluation.__main__ import main
from minillava.evaluation.judge import (
    PROMPTS,
    Comparison,
    parse_scores,
    parse_scores_officially,
    review_messages,
    rule_name,
)
from minillava.evaluation.report import interval, relative
from minillava.toy import bench as toy_bench
from tests.comparing import read_jsonl, write_jsonl
from tests.servers import environment, serving

COCO = Path(__file__).parent.parent / "../shared/data/coco"


# ----------------------------------------------------------------------------------------------------------- the judge

QUESTION = {"question_id": 4, "image": "a.jpg", "text": "What?", "category": "conv"}
RULES = {name: {"role": "Assistant", "prompt": f"Rule of {name}."} for name in ("conv", "llava_bench_conv")}


def compared(context):
    return Comparison(1, QUESTION, context, [{"text": "first"}, {"text": "second"}])


def test_the_judge_is_asked_in_the_official_layout():
    context = {"captions": ["One.", "Two."], "instances": [{"category": "cat", "bbox": [0.5, 0.0, 1.0, 0.25]},
                                                           {"category": "dog", "bbox": [0.1, 0.2, 0.3, 0.4]}]}
    system, user = review_messages(compared(context), RULES, "Judge.")
    assert rule_name(compared(context)) == "conv" and system["content"] == "Judge."
    assert (system["role"], user["role"]) == ("system", "user")
    assert user["content"] == (
        "[Context]\nOne.\nTwo.\n\ncat: [0.5, 0.0, 1.0, 0.25]\ndog: [0.1, 0.2, 0.3, 0.4]\n\n[Question]\nWhat?\n\n"
        "[Assistant 1]\nfirst\n\n[End of Assistant 1]\n\n[Assistant 2]\nsecond\n\n[End of Assistant 2]\n\n"
        "[System]\nRule of conv.\n\n")
    for caption in ("In the wild.\nYes.", ["In the wild.", "Yes."]):
        _, user = review_messages(compared({"caption": caption}), RULES, "Judge.")
        assert rule_name(compared({"caption": caption})) == "llava_bench_conv"
        assert user["content"].startswith("[Context]\nIn the wild.\nYes.\n\n[Question]\nWhat?\n\n[A")
        assert user["content"].endswith("[System]\nRule of llava_bench_conv.\n\n")


@pytest.mark.parametrize("review, scores, official", [
    ("8 9\nBecause.", [8, 9], [8, 9]), ("8,9", [8, 9], [8, 9]), ("9 8.5", [9, 8.5], [9, 8.5]),
    ("8, 9", [8, 9], [-1, -1]), ("8 9 ", [8, 9], [-1, -1]), ("8\t9", [8, 9], [-1, -1]), ("8  9", [8, 9], [-1, -1]),
    ("\n8 9", [8, 9], [-1, -1]), ("8/10 10/10", [8, 10], [-1, -1]), ("**8** **9**", [8, 9], [-1, -1]),
    ("Scores: 8 9.", [8, 9], [-1, -1]),
    ("Assistant 1: 8, Assistant 2: 9", None, [-1, -1]), ("I see 3 of 5 things.", None, [-1, -1]), ("8", None, [-1, -1]),
    ("8 9 7", None, [-1, -1]), ("", None, [-1, -1]), ("85 90", None, [85, 90]), ("None of\n8 9", None, [-1, -1]),
])
def test_scores_are_read_tolerantly_and_officially(review, scores, official):
    assert parse_scores(review) == scores
    assert parse_scores_officially(review) == official


def bench(folder, count=12):
    """A question file, contexts, a reference and a candidate, and the flags that name them."""
    ids, categories = range(count), ("conv", "detail", "complex")
    write_jsonl(folder / "q.jsonl", [{"question_id": i, "image": f"{i // 3}.jpg", "text": f"Question {i}?",
                                      "category": categories[i % 3]} for i in ids])
    write_jsonl(folder / "c.jsonl",
                [{"image": f"{i}.jpg", "captions": [f"Picture {i}."], "instances": []} for i in ids])
    write_jsonl(folder / "ref.jsonl", [{"question_id": i, "text": "good", "category": categories[i % 3]} for i in ids])
    write_jsonl(folder / "cand.jsonl", [{"question_id": i, "text": "fair", "answer_id": f"id{i}"} for i in ids[::-1]])
    return ["judge", "--questions", folder / "q.jsonl", "--context", folder / "c.jsonl", "--answers",
            folder / "ref.jsonl", folder / "cand.jsonl", "--teacher", "openai", "--cache", folder / "cache",
            "--out", folder / "reviews.jsonl"]


def number_of(request):
    return int(re.search(r"Question (\d+)\?", request["messages"][-1]["content"])[1])


def test_a_biased_judge_is_found_out(tmp_path, run):
    def behave(server, request):  # one point more for whoever stands first; question 5 it will not judge
        text = request["messages"][-1]["content"]
        if number_of(request) == 5:
            return "Both are good."
        return "9, 6 \nExplained." if "[Assistant 1]\ngood" in text else "7 8\nExplained."

    with serving(behave) as server:
        done = run(*bench(tmp_path), "--both-orders", **environment(server))
        assert done.returncode == 0 and len(server.requests) == 24, done.err
        assert server.requests[0]["temperature"] == 0.2 and server.requests[0]["max_tokens"] == 1024
        assert run(*bench(tmp_path), "--both-orders").returncode == 0 and len(server.requests) == 24  # a rerun is free
    rows = read_jsonl(tmp_path / "reviews.jsonl")
    assert rows[0] == {"id": 1, "question_id": 0, "answer1_id": 0, "answer2_id": "id0", "category": "conv",
                       "content": "9, 6 \nExplained.", "tuple": [-1, -1], "scores": [9, 6],
                       "swapped_content": "7 8\nExplained.", "swapped_tuple": [8, 7],
                       "swapped_scores": [8, 7]}
    assert rows[5]["tuple"] == [-1, -1] and rows[5]["scores"] is None
    done = run("report", tmp_path / "reviews.jsonl")
    lines = {line.split()[0]: line.split() for line in done.out.splitlines()[1:]}
    assert lines["all"] == ["all", "76.5", "76.5", "-", "76.5", "85.0", "65.0", "11", "1"]
    assert lines["complex"][1:] == ["76.5", "76.5", "-", "76.5", "85.0", "65.0", "3", "1"]
    assert lines["conv"][-2:] == ["4", "0"]
    assert "an answer gets +1.00 points for standing first; 0 of 11 verdicts turn round" in done.out
    strict = run("report", "--strict-official", tmp_path / "reviews.jsonl")
    names = "all", "complex", "conv", "detail"
    assert strict.out.splitlines()[1:] == [f"{name} 100.0 -10.0 -10.0" for name in names]  # "9, 6 " is no score there


def test_the_official_arithmetic(tmp_path, run):
    contents = ["8 9", "7 9.5", "10 8, 9", "8 9\n", "6.5 5", "9 9"]
    rows = [{"category": f"llava_bench_{('conv', 'detail')[i % 2]}", "content": content, "tuple": [0, 0]}
            for i, content in enumerate(contents)]
    done = run("report", "--strict-official", write_jsonl(tmp_path / "r.jsonl", rows))
    # conv: (8, 9), (-1, -1), (6.5, 5) -> 4.5, 4.333; detail: (7, 9.5), (8, 9), (9, 9) -> 8, 9.167; all -> 6.25, 6.75
    assert done.out.splitlines()[1:] == ["all 108.0 62.5 67.5", "llava_bench_conv 96.3 45.0 43.3",
                                         "llava_bench_detail 114.6 80.0 91.7"]
    tolerant = run("report", tmp_path / "r.jsonl")
    lines = {line.split()[0]: line.split() for line in tolerant.out.splitlines()[1:]}
    assert lines["llava_bench_conv"][1] == "96.6" and lines["llava_bench_conv"][-4:] == ["72.5", "70.0", "2", "1"]


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        pairs = np.stack([rng.normal(8, 1, 60), rng.normal(6, 1.5, 60)], 1)
        low, high = interval(pairs, draws=300)
        inside += low <= 75 <= high
        assert low <= relative(pairs) <= high
    assert 178 <= inside <= 200


def test_the_judge_stops_at_the_limit_and_goes_on(tmp_path, run):
    with serving(lambda server, request: "8 7\nWell.") as server:
        done = run(*bench(tmp_path), "--max-tokens", 20, "--max-tokens-spent", 2000, **environment(server))
        paid = len(server.requests)
        assert 0 < paid < 12 and done.returncode == 1 and f"{12 - paid} were not asked for" in done.out
        assert len(read_jsonl(tmp_path / "reviews.jsonl")) == paid
        assert run(*bench(tmp_path), "--max-tokens", 20, **environment(server)).returncode == 0
        assert len(server.requests) == 12 == len(read_jsonl(tmp_path / "reviews.jsonl"))


def test_an_answer_file_may_write_its_ids_as_text_and_be_compared_with_itself(tmp_path, run):
    typed = bench(tmp_path)
    rows = [row | {"question_id": str(row["question_id"])} for row in read_jsonl(tmp_path / "cand.jsonl")]
    write_jsonl(tmp_path / "ref.jsonl", rows)
    typed[7] = tmp_path / "ref.jsonl"
    with serving(lambda server, request: "8 8\nWell.") as server:
        done = run(*typed, **environment(server))
    assert done.returncode == 0 and len(read_jsonl(tmp_path / "reviews.jsonl")) == 12, done.err


def spoilt(name, row):
    return lambda folder: write_jsonl(folder / name, [row])


@pytest.mark.parametrize("break_it, message", [
    (lambda folder: (folder / "cand.jsonl").write_text(""), "cand.jsonl has no answer to question 0"),
    (lambda folder: (folder / "c.jsonl").write_text('{"image": "0.jpg"}\n'), "c.jsonl says nothing of 0.jpg"),
    (lambda folder: (folder / "q.jsonl").write_text('{"question_id": 1}\n'), "question 1 of {folder}/q.jsonl has no question_id or no text"),
    (lambda folder: (folder / "q.jsonl").write_text("{\n"), "line 1 of"),
    (spoilt("q.jsonl", QUESTION | {"text": None}), "question 1 of {folder}/q.jsonl has no question_id or no text"),
    (spoilt("q.jsonl", QUESTION | {"category": 1}), "question 4 of {folder}/q.jsonl has no image or no category"),
    (spoilt("cand.jsonl", {"question_id": [0]}), "cand.jsonl has no answer to question 0"),
    (spoilt("cand.jsonl", {"question_id": 0, "text": "4", "prompt": "What is 2 + 2?"}),
     "cand.jsonl answers other questions, such as 0, 'What is 2 + 2?'"),
    (lambda folder: write_jsonl(folder / "cand.jsonl", [{"question_id": 0, "text": text} for text in "ab"]),
     "cand.jsonl has two rows of question_id 0"),
    (spoilt("c.jsonl", {"image": ["0.jpg"]}), "c.jsonl says nothing of 0.jpg"),
    (spoilt("c.jsonl", {"image": "0.jpg", "caption": None}), "c.jsonl: of 0.jpg it has neither"),
    (spoilt("c.jsonl", {"image": "0.jpg", "captions": [3], "instances": []}), "of 0.jpg it has"),
    (spoilt("c.jsonl", {"image": "0.jpg", "captions": [], "instances": None}), "of 0.jpg it has"),
    (spoilt("c.jsonl", {"image": "0.jpg", "captions": [], "instances": [{"category": "cat"}]}),
     "instances, each with category and bbox"),
    (lambda folder: (folder / "ref.jsonl").unlink(), "No such file"),
    (lambda folder: write_jsonl(folder / "q.jsonl", [QUESTION | {"image": "1.jpg", "category": "poems"}]),
     "category poems"),
])
def test_what_is_wrong_with_the_judges_files_is_one_line(tmp_path, run, break_it, message):
    typed = bench(tmp_path)
    break_it(tmp_path)
    done = run(*typed, OPENAI_BASE_URL="http://127.0.0.1:9/v1", OPENAI_MODEL="mock")
    assert done.returncode == 2 and done.err.splitlines()[-1].startswith("error: ")
    assert message.format(folder=tmp_path) in done.err
    assert not (tmp_path / "reviews.jsonl").exists()


def test_a_file_without_reviews_is_told(tmp_path, run):
    done = run("report", write_jsonl(tmp_path / "r.jsonl", [{"category": "conv"}]))
    assert done.returncode == 2 and "holds no reviews" in done.err


def test_the_rule_covers_both_benches():
    rules = json.loads((PROMPTS / "rule.json").read_text())
    assert set(rules) == {prefix + name for prefix in ("", "llava_bench_") for name in ("conv", "detail", "complex")}


def test_the_toy_bench_answers_judges_and_reports(tmp_path, run, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "main", toy_bench.main)
    done = run("--out", tmp_path, "--scenes", 4)
    assert done.returncode == 0, done.err
    rows = read_jsonl(tmp_path / "reviews.jsonl")
    assert len(rows) == 12 and all(row["tuple"][0] == 10 for row in rows)  # the reference is the teacher's own
    answers, reference = read_jsonl(tmp_path / "answers.jsonl"), read_jsonl(tmp_path / "reference.jsonl")
    for row, answer, right in zip(rows, answers, reference):
        assert (row["tuple"][1] == 10) == (answer["text"] == right["text"])
    assert done.out.splitlines()[-4].split()[0] == "all" and done.out.splitlines()[-1].split()[-2:] == ["4", "0"]


@pytest.mark.skipif(not COCO.exists(), reason="the real LLaVA-Bench (COCO) is not here")
def test_the_real_bench_through_a_server_with_moods(tmp_path, run):
    def behave(server, request):
        moods = {2: (429, {"Retry-After": "0"}, b"slow down"), 5: (500, {"Retry-After": "0"}, b""), 7: ("cut",)}
        return moods.get(len(server.requests) % 9, "9 8\nWell.")

    candidate = write_jsonl(tmp_path / "cand.jsonl", [{"question_id": i, "text": f"Answer {i}."} for i in range(90)])
    with serving(behave) as server:
        done = run("judge", "--questions", COCO / "qa90_questions.jsonl",
                   "--context", COCO / "caps_boxes_coco2014_val_80.jsonl",
                   "--answers", COCO / "qa90_gpt4_answer.jsonl", candidate, "--teacher", "openai",
                   "--cache", tmp_path / "cache", "--retries", 20, "--out", tmp_path / "r.jsonl",
                   **environment(server))
    assert done.returncode == 0, done.err
    report = run("report", "--strict-official", tmp_path / "r.jsonl").out.splitlines()
    assert report[1:] == [f"{name} 88.9 90.0 80.0" for name in ("all", "complex", "conv", "detail")]
