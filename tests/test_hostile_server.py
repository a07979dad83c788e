"""A server that means ill or is merely odd: one bad reply costs one reject, and nothing paid for is lost."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minillava.instruct.__main__ import main
from minillava.instruct.budget import Budget
from minillava.instruct.endpoint import Endpoint
from minillava.instruct.exchange import BadReply, LimitReached, TeacherError
from minillava.instruct.teacher import MAX_FAILURES, Teacher
from tests.comparing import read_jsonl, write_jsonl
from tests.servers import completion, environment, serving

ROOT = Path(__file__).parent.parent
SETTINGS = {"model": "mock", "temperature": 0.0, "max_tokens": 50}
DESCRIPTION = "The cat sleeps."


def question(text):
    return [{"role": "user", "content": str(text)}]


def open_at(server, folder, key="", timeout=5.0, **more):
    endpoint = Endpoint(server.base_url, key, SETTINGS, timeout)
    more = {"retries": 2, "backoff": 0.01, "max_tokens": 50, **more}
    return Teacher(endpoint.complete, SETTINGS, folder, **more)


@pytest.fixture
def typed(tmp_path):
    """The words of a command that asks for 40 descriptions, one request at a time."""
    rows = [{"image": f"{i:02}.jpg", "captions": [f"Picture {i}."], "instances": []} for i in range(40)]
    path = write_jsonl(tmp_path / "symbols.jsonl", rows)
    return ["--captions", path, "--kinds", "detail", "--teacher", "openai", "--concurrency", "1",
            "--retries", "0", "--cache", tmp_path / "cache", "--out", tmp_path / "out.json"]


def samples(tmp_path, name="out.json"):
    return json.loads((tmp_path / name).read_text(encoding="utf-8"))


def rejects(tmp_path):
    return read_jsonl(tmp_path / "out.rejects.jsonl")


# ------------------------------------------------------------------------------------------- Ctrl-C

ASKER = """
import sys
from test_hostile_server import *
server = type("Server", (), {"base_url": sys.argv[1]})
teacher = open_at(server, sys.argv[2], workers=3, timeout=600)
try:
    teacher.map(lambda n: teacher.ask(question(n)), range(100_000))
except KeyboardInterrupt:
    sys.exit(130)
"""


def asker(server, folder):
    paths = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
    return subprocess.Popen([sys.executable, "-c", ASKER, server.base_url, folder], text=True,
                            env=os.environ | {"PYTHONPATH": paths}, stdout=-1, stderr=-1)


def wait_until(condition, process):
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


def test_ctrl_c_among_a_hundred_thousand_jobs_asks_no_more(tmp_path):
    def behave(server, request):
        time.sleep(0.02)
        return "yes"

    with serving(behave) as server:
        process = asker(server, tmp_path)
        wait_until(lambda: len(server.requests) >= 5, process)
        sent = len(server.requests)
        process.send_signal(signal.SIGINT)
        process.communicate()
        assert process.returncode == 130
        assert len(server.requests) <= sent + 20  # the signal takes a moment; it was 584 once
        assert len(list(tmp_path.rglob("*.json"))) == len(server.requests)  # waited for, and kept


def test_ctrl_c_says_for_what_it_waits_and_a_second_one_waits_no_more(tmp_path):
    with serving(lambda server, request: ("silent", 600)) as server:
        process = asker(server, tmp_path)
        wait_until(lambda: len(server.requests) == 3, process)
        process.send_signal(signal.SIGINT)
        lines = iter(process.stderr.readline, "")
        assert any("stopping: 3 requests are under way" in line for line in lines)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=300)  # half of what the requests would take
        assert process.returncode == 130


def test_a_teacher_that_was_stopped_can_be_asked_again(tmp_path):
    trouble = [(503, {"Retry-After": "200"}, b"wait")]

    def ask(text):
        if text == "Ctrl-C":
            while trouble:  # until the other one waits for its next try
                time.sleep(0.01)
            raise KeyboardInterrupt
        return teacher.ask(question(text))

    with serving(lambda server, request: trouble.pop() if trouble else "yes") as server:
        teacher = open_at(server, tmp_path, workers=2)
        with pytest.raises(KeyboardInterrupt):
            teacher.map(ask, ["a", "Ctrl-C"])
        assert len(server.requests) == 1
        assert teacher.map(ask, ["a", "b"]) == ["yes", "yes"]


# ------------------------------------------------------------------- one bad reply costs one reject

@pytest.mark.parametrize("trouble, reason", [
    ((500, {}, b"out of luck"), "HTTP 500: out of luck"),
    (("slow", 30), "no answer within 1 s"),
    ((400, {}, b"content policy"), "HTTP 400: content policy"),
    ((200, {}, completion(None, refusal="I will not.")), "refused: I will not."),
    ((200, {}, completion("I\u2019m sorry, but I can't see the image.")), "it is a refusal"),
    ((200, {}, completion("The cat sleeps.", finish="length")), "cut off before its end (length)"),
    ((200, {}, completion("The cat.", finish="content_filter")), "its end (content_filter)"),
    ((200, {}, completion("", finish="length")), "nothing was written before the answer was cut off"),
    ((200, {}, completion("A cat \ud83d sleeps.")), "a character is broken"),
    ((200, {}, completion("<think>It could be a cat.")), "empty"),
])
def test_one_picture_that_always_fails_is_one_reject(tmp_path, typed, run, trouble, reason):
    def behave(server, request):
        return trouble if "Picture 7." in request["messages"][-1]["content"] else DESCRIPTION

    timeout = 1 if trouble[0] == "slow" else 60
    with serving(behave) as server:
        for _ in range(2):  # the second time most comes from the cache, and is read just the same
            done = run(*typed, "--timeout", timeout, **environment(server))
            assert done.returncode == 0, done.err
            assert len(samples(tmp_path)) == 39
            reject, = rejects(tmp_path)
            assert reject["image"] == "07.jpg" and reason in reject["reason"]


def test_a_server_that_goes_down_ends_the_run_and_what_it_said_is_written(tmp_path, typed, run):
    def behave(server, request):
        return DESCRIPTION if len(server.requests) <= 15 else (500, {}, b"on fire")

    with serving(behave) as server:
        done = run(*typed, **environment(server))
        assert len(server.requests) == 15 + MAX_FAILURES
    assert done.returncode == 1 and len(samples(tmp_path)) == 15
    assert f"{MAX_FAILURES} requests in a row got no answer" in done.out and "on fire" in done.out
    assert "5 samples were not asked for" in done.out
    assert "15 answers are kept, the same command goes on" in done.out
    with serving(lambda server, request: DESCRIPTION) as server:
        done = run(*typed, **environment(server))
        assert done.returncode == 0 and len(samples(tmp_path)) == 40
        assert len(server.requests) == 40  # another address: another cache


def test_a_damaged_answer_in_the_cache_ends_the_run_and_is_named(tmp_path, typed, run):
    with serving(lambda server, request: DESCRIPTION) as server:
        run(*typed, **environment(server))
        for path in (tmp_path / "cache").rglob("*.json"):
            path.write_text("{")
        done = run(*typed, **environment(server))
    assert done.returncode == 2 and "is no cached answer; delete it" in done.err.splitlines()[-1]


def test_failures_that_are_not_in_a_row_end_no_run(tmp_path, typed, run):
    def behave(server, request):
        return DESCRIPTION if len(server.requests) % 2 else (500, {}, b"")

    with serving(behave) as server:
        done = run(*typed, **environment(server))
    assert done.returncode == 0 and len(samples(tmp_path)) == 20 == MAX_FAILURES == len(rejects(tmp_path))


@pytest.mark.parametrize("trouble, words", [
    ((400, {}, b"max_tokens is not supported, use max_completion_tokens"),
     "--token-field max_completion_tokens"),
    ((400, {}, b"temperature does not support 0.7"), "--no-send-temperature"),
    ((200, {}, b"<html>A login page</html>"), "A login page"),
    ((200, {}, completion("I'm sorry, I can't see images.")), "it is a refusal"),
])
def test_nothing_but_trouble_is_no_success(tmp_path, typed, run, trouble, words):
    (tmp_path / "out.json").write_text("of an earlier run")
    with serving(lambda server, request: trouble) as server:
        done = run(*typed, **environment(server))
    assert done.returncode == 1 and "no sample was made" in done.err and words in done.err
    assert (tmp_path / "out.json").read_text() == "of an earlier run"


def test_newer_models_are_asked_as_they_want_it(tmp_path, typed, run):
    with serving(lambda server, request: DESCRIPTION) as server:
        done = run(*typed, "--token-field", "max_completion_tokens", "--no-send-temperature",
                   "--fields", '{"reasoning_effort": "low"}', **environment(server))
        assert done.returncode == 0
        request = dict(server.requests[0])
        del request["messages"]
        assert request == {"model": "mock", "max_completion_tokens": 1024, "reasoning_effort": "low"}


def test_a_forgotten_v1_is_told(tmp_path, typed, run):
    with serving(lambda server, request: (404, {}, b"not found")) as server:
        done = run(*typed, **environment(server, OPENAI_BASE_URL=server.base_url.removesuffix("/v1")))
    assert done.returncode == 2 and "without the /v1" in done.err.splitlines()[-1]


# ----------------------------------------------------------------------------------- what it costs

def test_billed_answers_of_nothing_count(tmp_path):
    with serving(lambda server, request: (200, {}, completion(""))) as server:
        teacher = open_at(server, tmp_path, retries=20, backoff=0, budget=Budget(max_tokens=1000))
        with pytest.raises(LimitReached):
            teacher.ask(question("x"))
        assert sum(teacher.budget.spent) == 110 * len(server.requests) <= 1000


@pytest.mark.parametrize("usage", [
    None, "many", [], {"prompt_tokens": None}, {"prompt_tokens": -10**6, "completion_tokens": "ten"},
    {"prompt_tokens": float("inf"), "completion_tokens": float("nan")}, {"prompt_tokens": 10**30},
    {"prompt_tokens": True},
])
def test_usage_that_cannot_be_true_is_estimated(tmp_path, usage):
    with serving(lambda server, request: (200, {}, completion("four letters", usage=usage))) as server:
        teacher = open_at(server, tmp_path, budget=Budget(max_tokens=200))
        assert teacher.ask(question("x" * 40)) == "four letters"
        assert teacher.budget.spent == (14, 5)


def test_a_limit_is_for_the_work_and_not_for_a_run(tmp_path, typed, run):
    with serving(lambda server, request: DESCRIPTION) as server:
        typed += ["--max-tokens", "50"]
        done = run(*typed, "--max-tokens-spent", "6000", **environment(server))
        paid = len(server.requests)
        assert done.returncode == 1 and 0 < paid < 40
        done = run(*typed, "--max-tokens-spent", "6000", **environment(server))
        assert done.returncode == 1 and len(server.requests) == paid == len(samples(tmp_path))
        assert f"{100 * paid} + {10 * paid} tokens of prompts and answers by earlier runs" in done.out
        assert run(*typed, "--max-tokens-spent", "90000", **environment(server)).returncode == 0


def test_the_bar_shows_what_was_spent(tmp_path, typed, run):
    with serving(lambda server, request: DESCRIPTION) as server:
        done = run(*typed, "--prices", "1000", "1000", **environment(server))
    assert done.returncode == 0 and "$4.40" in done.err and "$4.40" in done.out


def test_a_dry_run_asks_nothing(tmp_path, typed, run):
    with serving(lambda server, request: DESCRIPTION) as server:
        typed += ["--prices", "1", "2", "--max-tokens", "100"]
        done = run(*typed, "--dry-run", **environment(server))
        assert done.returncode == 0 and not server.requests and not (tmp_path / "out.json").exists()
        assert done.out.count("--- system") == 1 and "Picture" in done.out
        assert "40 requests, 0 of them answered by the cache" in done.out and "+ 4000 tokens" in done.out
        run(*typed, **environment(server))
        done = run(*typed, "--dry-run", **environment(server))
        assert "40 requests, 40 of them answered by the cache" in done.out and "$0.00" in done.out
        assert len(server.requests) == 40


# ------------------------------------------------------------------------------- texts from outside

def test_a_short_key_is_struck_out_where_it_is_echoed_and_in_no_word(tmp_path):
    reply = "Six foxes, x = 6. Authorization: Bearer x."
    with serving(lambda server, request: reply) as server:
        said = open_at(server, tmp_path, key="x").ask(question("a"))
        assert said == "Six foxes, x = 6. Authorization: Bearer ***."


def test_a_secret_is_struck_out_however_it_is_written(tmp_path, capfd):
    key = "sk-abc/def-1234567"
    escaped = key.replace("-", "\\u002d").replace("/", "\\/")
    replies = [("raw", f"HTTP/9 Bearer {key}\r\n\r\n".encode()),
               (500, {}, f'{{"wrong key": "{escaped}"}}'.encode()),
               (200, {}, completion(f"It is {key}.").replace(key.encode(), escaped.encode()))]
    with serving(lambda server, request: replies[len(server.requests) - 1]) as server:
        assert open_at(server, tmp_path, key=key).ask(question("a")) == "It is ***."
    seen = capfd.readouterr().err + "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert "HTTP/9" in seen and "wrong key" in seen
    assert key not in seen and escaped not in seen and key not in seen.replace("\\", "")


def test_an_error_does_not_command_the_terminal(tmp_path, typed, run):
    with serving(lambda server, request: (401, {}, b"\x1b[2J\x07 go \xe2\x80\xae away")) as server:
        done = run(*typed, **environment(server))
    assert done.returncode == 2 and "go" in done.err and "away" in done.err
    assert not {"\x1b", "\x07", "\u202e"} & set(done.err.splitlines()[-1])


def test_what_a_reasoning_model_thinks_is_not_its_answer(tmp_path):
    replies = ["<think>\nA cat?\n</think>\n\nA cat.", "So: a cat.</think>A cat."]
    with serving(lambda server, request: replies[len(server.requests) - 1]) as server:
        teacher = open_at(server, tmp_path)
        assert [teacher.ask(question(n)) for n in range(2)] == ["A cat.", "A cat."]
        assert [teacher.ask(question(n)) for n in range(2)] == ["A cat.", "A cat."]  # cached


# ------------------------------------------------------------------- told before anything is paid for

@pytest.mark.parametrize("words, changes, message", [
    (["--out", "{tmp}"], {}, "is a folder"),
    (["--out", "{tmp}/symbols.jsonl/x.json"], {}, "there is a file where a folder is wanted"),
    (["--cache", "{tmp}/symbols.jsonl"], {}, "there is a file where a folder is wanted"),
    (["--timeout", "nan"], {}, "--timeout"), (["--timeout", "inf"], {}, "--timeout"),
    (["--temperature", "nan"], {}, "--temperature"), (["--prices", "nan", "1"], {}, "--prices"),
    (["--max-cost", "inf", "--prices", "1", "1"], {}, "--max-cost"),
    (["--fields", "[1]"], {}, "is no JSON object"),
    ([], {"OPENAI_BASE_URL": "http://127.0.0.1 /v1"}, "OPENAI_BASE_URL"),
    ([], {"OPENAI_BASE_URL": "http://127.0.0.1:9/v 1"}, "OPENAI_BASE_URL"),
    ([], {"OPENAI_BASE_URL": "http://127.0.0.1:port/v1"}, "port"),
    ([], {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1?key=secret"}, "OPENAI_BASE_URL"),
])
def test_what_cannot_go_well_is_told_before_the_first_request(tmp_path, typed, run, words, changes,
                                                              message):
    words = [word.format(tmp=tmp_path) for word in words]
    with serving(lambda server, request: DESCRIPTION) as server:
        done = run(*typed, *words, **environment(server) | changes)
        assert done.returncode == 2 and message in done.err.splitlines()[-1]
        assert not server.requests and "Traceback" not in done.err


def test_a_folder_in_which_nothing_can_be_written_is_told(tmp_path, typed, run, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with serving(lambda server, request: DESCRIPTION) as server:
        done = run(*typed, **environment(server))
        assert done.returncode == 2 and "nothing can be written there" in done.err
        assert not server.requests


def test_the_folder_of_out_is_made_and_jsonl_is_json_lines(tmp_path, typed, run):
    with serving(lambda server, request: DESCRIPTION) as server:
        done = run(*typed, "--out", tmp_path / "new" / "folder" / "x.jsonl", **environment(server))
    assert done.returncode == 0, done.err
    lines = (tmp_path / "new" / "folder" / "x.jsonl").read_text().splitlines()
    assert len(lines) == 40 and set(json.loads(lines[0])) == {"id", "image", "conversations"}


# ------------------------------------------------------------------------------------------- proxies

def test_the_proxy_of_the_environment_is_asked(tmp_path, monkeypatch):
    with serving(lambda server, request: "yes") as proxy:
        address = proxy.base_url.removeprefix("http://").removesuffix("/v1")
        monkeypatch.setenv("http_proxy", f"http://user:pass@{address}")
        monkeypatch.delenv("no_proxy", raising=False)
        far = type("Server", (), {"base_url": "http://teacher.invalid:8000/v1"})
        assert open_at(far, tmp_path).ask(question("x")) == "yes"
        assert proxy.last_path == "http://teacher.invalid:8000/v1/chat/completions"
        assert proxy.last_headers["Host"] == "teacher.invalid:8000"
        assert proxy.last_headers["Proxy-Authorization"] == "Basic dXNlcjpwYXNz"
        with serving(lambda server, request: "near") as near:  # a server on this machine needs none
            assert open_at(near, tmp_path / "near").ask(question("x")) == "near"
        monkeypatch.setenv("no_proxy", "teacher.invalid")
        with pytest.raises((TeacherError, BadReply)):
            open_at(far, tmp_path, retries=0).ask(question("y"))
        assert len(proxy.requests) == 1


def test_with_https_the_proxy_is_asked_for_a_tunnel_and_told_no_key(tmp_path, monkeypatch):
    with serving(lambda server, request: "yes") as proxy:
        address = proxy.base_url.removeprefix("http://").removesuffix("/v1")
        monkeypatch.setenv("https_proxy", f"user@{address}")
        monkeypatch.delenv("no_proxy", raising=False)
        far = type("Server", (), {"base_url": "https://teacher.invalid/v1"})
        with pytest.raises(TeacherError, match="Tunnel connection failed: 403"):
            open_at(far, tmp_path, key="sk-secret-of-the-test", retries=0).ask(question("x"))
        (host, headers), = proxy.tunnels
        assert host == "teacher.invalid:443" and headers["Proxy-Authorization"] == "Basic dXNlcjo="
        assert "sk-secret" not in str(headers)
