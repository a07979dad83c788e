"""The judge before a hostile server, and the report over files of every kind."""
import json
from collections import defaultdict

import numpy as np
import pytest

from minillava.evaluation.__main__ import main
from minillava.evaluation.judge import RULE, SYSTEM
from tests.comparing import read_jsonl, write_jsonl
from tests.servers import completion, environment, serving
from tests.test_llava_bench import bench, number_of


# --------------------------------------------------------------------------------------- the judge

def test_rule_and_system_message_can_be_the_official_ones_and_our_wording_is_said(tmp_path, run):
    typed = bench(tmp_path)
    with serving(lambda server, request: "8 7\nWell.") as server:
        done = run(*typed, **environment(server))
        assert done.returncode == 0 and "our own wording of the task" in done.out
        system, user = server.requests[0]["messages"]
        assert system["content"] == SYSTEM.read_text().strip()
        assert user["content"].endswith(json.loads(RULE.read_text())["conv"]["prompt"] + "\n\n")

        rules = {name: {"role": "Robot", "prompt": "Rate."} for name in ("conv", "detail", "complex")}
        (tmp_path / "rule.json").write_text(json.dumps(rules))
        (tmp_path / "system.txt").write_text("You are strict.\n")
        done = run(*typed, "--rule", tmp_path / "rule.json", "--system", tmp_path / "system.txt",
                   **environment(server))
        assert done.returncode == 0 and "wording" not in done.out
        system, user = server.requests[-1]["messages"]
        assert system["content"] == "You are strict." and user["content"].endswith("[System]\nRate.\n\n")
        assert "[Robot 1]\ngood\n\n[End of Robot 1]" in user["content"]


def test_one_question_that_always_fails_is_one_failed_review(tmp_path, run):
    def behave(server, request):
        return (500, {}, b"no") if number_of(request) == 5 else "8 7\nWell."

    with serving(behave) as server:
        done = run(*bench(tmp_path), "--retries", "0", **environment(server))
    rows = read_jsonl(tmp_path / "reviews.jsonl")
    assert done.returncode == 0 and len(rows) == 12
    assert rows[5]["tuple"] == [-1, -1] and "HTTP 500" in rows[5]["content"]
    assert "1" == run("report", tmp_path / "reviews.jsonl").out.splitlines()[2].split()[-1]


@pytest.mark.parametrize("trouble, words", [
    ((400, {}, b"\x1b[2Jwrong model"), "wrong model"),
    ((200, {}, completion("I'm sorry, but I can't see the image.")), "I can't see the image"),
    ((200, {}, completion(None, refusal="No.")), "refused: No."),
])
def test_nothing_but_trouble_is_no_success(tmp_path, run, trouble, words):
    with serving(lambda server, request: trouble) as server:
        done = run(*bench(tmp_path), **environment(server))
    assert done.returncode == 1 and words in done.err and "\x1b[2J" not in done.err
    assert not (tmp_path / "reviews.jsonl").exists()


@pytest.mark.parametrize("trouble, typed, code, words", [
    ((401, {}, b"no such key"), [], 2, "error: 127.0.0.1 says HTTP 401: no such key"),
    ("8 7", ["--max-tokens-spent", "1000"], 1, "the limit is near"),
])
def test_a_judge_that_cannot_be_asked_is_one_line(tmp_path, run, trouble, typed, code, words):
    with serving(lambda server, request: trouble) as server:
        done = run(*bench(tmp_path), *typed, **environment(server))
    assert done.returncode == code and words in done.err.splitlines()[-1]
    assert not (tmp_path / "reviews.jsonl").exists()


def test_a_dry_run_and_folders_that_are_not_there(tmp_path, run):
    typed = [*bench(tmp_path)[:-1], tmp_path / "new" / "reviews.jsonl"]
    with serving(lambda server, request: "8 7\nWell.") as server:
        done = run(*typed, "--both-orders", "--dry-run", **environment(server))
        assert done.returncode == 0 and "24 requests" in done.out and not server.requests
        assert run(*typed, **environment(server)).returncode == 0
        assert len(read_jsonl(tmp_path / "new" / "reviews.jsonl")) == 12
        sent = len(server.requests)
        for flag, name in (("--out", tmp_path), ("--cache", tmp_path / "q.jsonl"),
                           ("--out", tmp_path / "cand.jsonl"), ("--rule", tmp_path / "q.jsonl"), ("--system", tmp_path / "nowhere.txt")):
            done = run(*typed, "--cache", tmp_path / "fresh", flag, name, **environment(server))
            assert done.returncode == 2 and "Traceback" not in done.err
        assert len(server.requests) == sent


def test_a_category_without_a_rule_is_told_before_the_first_request(tmp_path, run):
    typed = bench(tmp_path)
    last = {"question_id": 11, "image": "3.jpg", "text": "Question 11?", "category": "poems\x1b[2J"}
    write_jsonl(tmp_path / "q.jsonl", [*read_jsonl(tmp_path / "q.jsonl")[:-1], last])
    with serving(lambda server, request: "8 7\nWell.") as server:
        done = run(*typed, **environment(server))
        assert done.returncode == 2 and not server.requests
        assert "category poems" in done.err and "\x1b" not in done.err


def test_the_official_summary_of_our_file_is_ours(tmp_path, run):
    """The official script groups what stands in "tuple"."""
    replies = ["9 8\nA.", "9, 6 \nB.", "8/10 9/10\nC.", "7,10\nD.", "Both are good."]
    with serving(lambda server, request: replies[number_of(request) % 5]) as server:
        assert run(*bench(tmp_path), **environment(server)).returncode == 0
    groups = defaultdict(list)
    for row in read_jsonl(tmp_path / "reviews.jsonl"):
        for name in ("all", row["category"]):
            groups[name].append(row["tuple"])
    lines = []
    for name, pairs in sorted(groups.items()):
        first, second = (round(mean, 3) for mean in np.asarray(pairs).mean(0).tolist())
        lines.append(f"{name} {round(second / first * 100, 1)} {round(first * 10, 1)} "
                     f"{round(second * 10, 1)}")
    done = run("report", "--strict-official", tmp_path / "reviews.jsonl")
    assert done.out.splitlines()[1:] == lines
    scores = [row["scores"] for row in read_jsonl(tmp_path / "reviews.jsonl")[:5]]
    assert scores == [[9, 8], [9, 6], [8, 9], [7, 10], None]


# -------------------------------------------------------------------------------------- the report

def reviews(folder, name, *contents, **more):
    rows = [{"question_id": i, "category": ("conv", "detail")[i % 2], "content": content, **more}
            for i, content in enumerate(contents)]
    return write_jsonl(folder / name, rows)


def table(out):
    return {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}


def test_questions_can_be_ignored(tmp_path, run):
    path = reviews(tmp_path, "r.jsonl", "10 5", "10 1", "10 7", "10 9")
    assert table(run("report", path).out)["all"][0] == "55.0"
    assert table(run("report", path, "--ignore", "1", "3").out)["all"][0] == "60.0"
    strict = run("report", "--strict-official", path, "--ignore", "1", "3")
    assert strict.out.splitlines()[1:] == ["all 60.0 100.0 60.0", "conv 60.0 100.0 60.0"]
    assert run("report", path, "--ignore", "0", "1", "2", "3").returncode == 2


def test_files_of_a_folder_are_selected_by_name_and_averaged(tmp_path, run):
    for number, score in enumerate((5, 6, 7), 1):
        reviews(tmp_path, f"reviews_7b_run{number}.jsonl", f"10 {score}", f"10 {score}")
    reviews(tmp_path, "reviews_13b_run1.jsonl", "10 9")
    write_jsonl(tmp_path / "answers.jsonl", [{"text": "no review"}])
    done = run("report", tmp_path)
    assert done.out.count("reviews_7b") == 3 and "reviews_13b" in done.out
    done = run("report", tmp_path, "--select", "7b", "run", "--average")
    assert "13b" not in done.out and "mean of 3 files" in done.out
    assert table(done.out)["all"] == ["60.0", "50.0", "-", "70.0", "100.0", "60.0"]
    strict = run("report", tmp_path, "--select", "7b", "--average", "--strict-official")
    assert table(strict.out)["detail"][0] == "60.0"
    done = run("report", tmp_path, "--select", "70b")
    assert done.returncode == 2 and "no file of reviews" in done.err


def test_reviews_without_a_category_and_of_scores_alone(tmp_path, run):
    rows = [{"question_id": 0, "tuple": [10, 5]}, {"question_id": 1, "score": [10, 7]},
            {"question_id": 2, "tuple": [10.0, 9.0], "category": "conv"}]
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    done = run("report", path)
    assert table(done.out)["all"][0] == "70.0" and table(done.out)["conv"][0] == "90.0"
    assert run("report", "--strict-official", path).out.splitlines()[1:] == [
        "all 70.0 100.0 70.0", "conv 90.0 100.0 90.0"]


def test_a_reference_of_nothing_gives_no_share(tmp_path, run):
    done = run("report", reviews(tmp_path, "r.jsonl", "0 9", "0 8"))
    assert table(done.out)["all"][:2] == ["-", "-"] and "00000" not in done.out
    done = run("report", "--strict-official", tmp_path / "r.jsonl")
    assert done.out.splitlines()[1] == "all nan 0.0 85.0"


@pytest.mark.parametrize("row", [
    {"category": "conv", "content": None}, {"category": 7, "content": "8 9"}, {"category": "conv"},
    {"category": "conv", "tuple": None}, {"category": "conv", "tuple": [1]},
    {"category": "conv", "tuple": ["8", "9"]}, {"category": "conv", "content": "8 9", "swapped_content": 1},
])
def test_what_is_no_review_is_one_line(tmp_path, run, row):
    done = run("report", write_jsonl(tmp_path / "r.jsonl", [{"category": "conv", "content": "8 9"}, row]))
    assert done.returncode == 2 and "line 2" in done.err and "Traceback" not in done.err


def test_a_category_does_not_command_the_terminal(tmp_path, run):
    path = write_jsonl(tmp_path / "r.jsonl", [{"category": "\x1b[2Jconv", "content": "8 9"}])
    for strict in ([], ["--strict-official"]):
        done = run("report", path, *strict)
        assert done.returncode == 0 and "conv" in done.out and "\x1b" not in done.out
