"""The teacher against a real server that misbehaves: nothing paid for is lost, nothing secret gets out."""
import argparse
import json
import time

import pytest

from minillava.checkpoint import TOY
from minillava.instruct import endpoint
from minillava.instruct.budget import Budget
from minillava.instruct.command import add_teacher_flags, open_from_flags
from minillava.instruct.endpoint import Endpoint
from minillava.instruct.exchange import BadReply, LimitReached, TeacherError
from minillava.instruct.local import LocalVicuna
from minillava.instruct.teacher import Teacher
from tests.servers import completion, serving

KEY = "sk-not-for-your-eyes-1234567890"
SETTINGS = {"model": "mock", "temperature": 0.0, "max_tokens": 50}


def question(text):
    return [{"role": "system", "content": "Answer."}, {"role": "user", "content": text}]


def open_at(server, folder, timeout=5.0, **more):
    endpoint = Endpoint(server.base_url, KEY, SETTINGS, timeout)
    return Teacher(endpoint.complete, SETTINGS, folder, max_tokens=50, **{"retries": 2, "backoff": 0.01, **more})


def last(request):
    return request["messages"][-1]["content"]


def test_an_answer_is_paid_for_once(tmp_path):
    with serving(lambda server, request: f"You said {last(request)}.") as server:
        teacher = open_at(server, tmp_path)
        assert teacher.ask(question("é")) == teacher.ask(question("é")) == "You said é."
        later = open_at(server, tmp_path)
        assert later.ask(question("é")) == later.ask(question("é")) == "You said é."
        assert teacher.budget.earlier == (0, 0) and later.budget.earlier == (100, 10)  # counted once
        assert len(server.requests) == 1
        assert server.requests[0] == {**SETTINGS, "messages": question("é")}
        assert server.last_path == "/v1/chat/completions" and server.last_headers["Authorization"] == f"Bearer {KEY}"
        assert teacher.spending() == "1 requests, 1 more from the cache; 100 + 10 tokens of prompts and answers spent"
        teacher.ask(question("a"))
        assert len(server.requests) == 2


def test_the_same_request_in_many_threads_is_paid_for_once(tmp_path):
    def behave(server, request):
        time.sleep(0.05)
        return "yes"

    with serving(behave) as server:
        teacher = open_at(server, tmp_path, workers=8)
        assert teacher.map(lambda n: teacher.ask(question("the same")), range(20)) == ["yes"] * 20
        assert len(server.requests) == 1


@pytest.mark.parametrize("trouble, error, reason", [
    ((429, {"Retry-After": "0"}, b'{"error": "slow down"}'), TeacherError, 'HTTP 429: {"error": "slow down"}'),
    ((500, {}, b"<html>oh\n no</html>"), BadReply, "HTTP 500: <html>oh no</html>"),
    (("slow", 3), BadReply, "no answer within 0.2 s"),
    (("cut",), BadReply, "IncompleteRead"),
    ((200, {}, b"{not JSON"), BadReply, "HTTP 200: {not JSON, which is no answer"),
    ((200, {}, b"[" * 100000), BadReply, "which is no answer"),
    ((200, {}, b"[]"), BadReply, "which is no answer"),
    ((200, {}, b'{"choices": []}'), BadReply, "which is no answer"),
    ((200, {}, b'{"choices": {}, "usage": 7}'), BadReply, "which is no answer"),
    ((200, {}, completion(None)), BadReply, "which is no answer"),
    ((200, {}, completion(" \n")), BadReply, "which is no answer"),
    ((200, {}, b" " * (endpoint.MAX_REPLY + 2)), BadReply, "more than 4194304 bytes"),
])
def test_trouble_that_passes_is_retried_and_trouble_that_stays_is_told(tmp_path, capfd, trouble, error, reason):
    timeout = 0.2 if trouble[0] == "slow" else 60
    with serving(lambda server, request: trouble if len(server.requests) < 3 else "at last") as server:
        assert open_at(server, tmp_path, timeout).ask(question("passes")) == "at last"
        assert len(server.requests) == 3 and reason in capfd.readouterr().err
    with serving(lambda server, request: trouble) as server:
        with pytest.raises(error, match=r"\(tried 3 times\)") as caught:
            open_at(server, tmp_path, timeout).ask(question("stays"))
        assert reason in str(caught.value) and "\n" not in str(caught.value)
        assert len(server.requests) == 3 and type(caught.value) is error


@pytest.mark.parametrize("status, error", [(400, BadReply), (401, TeacherError), (307, TeacherError)])
def test_a_refusal_is_not_retried(tmp_path, status, error):
    with serving(lambda server, request: "stolen") as thief:
        headers = {"Location": f"{thief.base_url}/chat/completions"}
        with serving(lambda server, request: (status, headers, b"no")) as server:
            with pytest.raises(error, match=f"HTTP {status}: no"):
                open_at(server, tmp_path).ask(question("x"))
            assert len(server.requests) == 1
        assert not thief.requests  # the key went nowhere


def test_retry_after_is_honoured(tmp_path, capfd):
    trouble = (429, {"Retry-After": "0"}, b"")
    with serving(lambda server, request: trouble if len(server.requests) < 3 else "yes") as server:
        assert open_at(server, tmp_path, backoff=60).ask(question("x")) == "yes"
        assert "try 2 of 3 in 0.0 s" in capfd.readouterr().err
    trouble = (429, {"Retry-After": "86400"}, b"")
    with serving(lambda server, request: trouble) as server:
        with pytest.raises(TeacherError, match="asks to wait 86400 s"):
            open_at(server, tmp_path).ask(question("y"))
    assert endpoint.seconds_to_wait("Wed, 21 Oct 2015 07:28:00 GMT") == 0 and endpoint.seconds_to_wait("soon") is None


def test_a_server_that_is_not_there(tmp_path):
    with serving(lambda server, request: "yes") as server:
        teacher = open_at(server, tmp_path)
    with pytest.raises(TeacherError, match="refused"):
        teacher.ask(question("x"))


def test_the_key_gets_out_nowhere(tmp_path, capfd):
    echo = (500, {}, f'{{"error": {{"message": "wrong key {KEY}"}}}}'.encode())
    with serving(lambda server, request: echo if len(server.requests) < 3 else f"Your key is {KEY}.") as server:
        teacher = open_at(server, tmp_path)
        assert teacher.ask(question("x")) == "Your key is ***."
        with pytest.raises(ValueError) as caught:
            Endpoint(server.base_url, KEY + "\n", SETTINGS)
    with pytest.raises(ValueError) as other:
        Endpoint(f"http://user:{KEY}@host/v1", KEY, SETTINGS)
    shown = capfd.readouterr().err + str(caught.value) + str(other.value) + repr(teacher.complete.__self__) + teacher.spending()
    kept = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "wrong key ***" in shown and "***" in kept and KEY not in shown + kept


def test_the_limit_is_never_passed_and_what_was_paid_is_kept(tmp_path):
    with serving(lambda server, request: "yes") as server:
        teacher = open_at(server, tmp_path, workers=4, budget=Budget(max_tokens=1000))
        with pytest.raises(LimitReached, match="raise it and run again"):
            teacher.map(lambda n: teacher.ask(question(str(n))), range(20))
        paid = len(server.requests)
        assert 3 <= paid <= 9 and sum(teacher.budget.spent) == 110 * paid <= 1000
        assert len(list(tmp_path.rglob("*.json"))) == paid
        rich = open_at(server, tmp_path, workers=4, budget=Budget(max_cost=1.0, prices=(1.0, 2.0)))
        assert rich.map(lambda n: rich.ask(question(str(n))), range(20)) == ["yes"] * 20
        assert len(server.requests) == 20 and rich.from_cache == paid
        poor = open_at(server, tmp_path, budget=Budget(max_cost=0.0001, prices=(1.0, 2.0)))
        assert poor.ask(question("3")) == "yes"  # from the cache: costs nothing
        with pytest.raises(LimitReached, match=r"\$0.00"):
            poor.ask(question("new"))


def test_trouble_with_one_job_stops_the_others_and_keeps_their_answers(tmp_path):
    def behave(server, request):
        time.sleep(0.05)
        return (401, {}, b"") if last(request) == "3" else "yes"

    with serving(behave) as server:
        teacher = open_at(server, tmp_path, workers=2)
        with pytest.raises(TeacherError, match="401"):
            teacher.map(lambda n: teacher.ask(question(str(n))), range(100))
        assert len(server.requests) < 20 and len(list(tmp_path.rglob("*.json"))) == len(server.requests) - 1


def test_a_damaged_cache_is_told(tmp_path):
    with serving(lambda server, request: "yes") as server:
        open_at(server, tmp_path).ask(question("x"))
        next(tmp_path.rglob("*.json")).write_text("{")
        with pytest.raises(TeacherError, match="is no cached answer; delete it"):
            open_at(server, tmp_path).ask(question("x"))


def test_a_vicuna_on_this_machine_answers_and_reads_its_examples_once(tmp_path):
    local = LocalVicuna(TOY / "vicuna", temperature=0.0, max_tokens=40, device="cpu")
    settings = {"max_tokens": 40}
    teacher = Teacher(local.complete, settings, tmp_path, max_tokens=40)
    messages = [{"role": "system", "content": "a small red circle at the top-left"},
                {"role": "user", "content": "How many shapes are there?"},
                {"role": "assistant", "content": "There is one shape."},
                {"role": "user", "content": "What color is the circle?"}]
    assert teacher.ask(messages) == "The circle is red."
    before, run = list(local.cache.ids), []
    local.model.language_model.register_forward_pre_hook(lambda module, inputs: run.append(inputs[0].shape[1]))
    again = messages[:-1] + [{"role": "user", "content": "What shape is at the top-left?"}]
    assert teacher.ask(again) == "The shape at the top-left is a circle."
    assert run[0] < len(before) // 2
    again_loaded = LocalVicuna(TOY / "vicuna", temperature=0.0, max_tokens=40, device="cpu")
    fresh = Teacher(again_loaded.complete, settings, tmp_path / "other")
    assert fresh.ask(again) == teacher.ask(again) and teacher.from_cache == 1


def arguments(*typed):
    parser = argparse.ArgumentParser()
    add_teacher_flags(parser, 0.2)
    return parser.parse_args(typed)


@pytest.mark.parametrize("typed, environment, message", [
    (["--teacher", "openai"], {}, "OPENAI_MODEL"),
    (["--teacher", "openai"], {"OPENAI_MODEL": "m", "OPENAI_BASE_URL": "ftp://x"}, "OPENAI_BASE_URL"),
    (["--teacher", "openai"], {"OPENAI_MODEL": "m", "OPENAI_API_KEY": "two words"}, "OPENAI_API_KEY"),
    (["--teacher", "nowhere"], {}, "nowhere"),
    (["--teacher", "toy", "--concurrency", "0"], {}, "--concurrency"),
    (["--teacher", "toy", "--max-cost", "1"], {}, "--prices"),
])
def test_what_is_wrong_with_the_flags(monkeypatch, typed, environment, message):
    for name in ("OPENAI_MODEL", "OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((OSError, ValueError), match=message) as caught:
        args = arguments(*typed)
        open_from_flags(args.teacher, args, {"toy": str})
    assert "\n" not in str(caught.value) and "two words" not in str(caught.value)


def test_the_environment_names_the_endpoint(monkeypatch, tmp_path):
    with serving(lambda server, request: "yes") as server:
        for name, value in (("MODEL", "mock"), ("BASE_URL", server.base_url + "/"), ("API_KEY", KEY)):
            monkeypatch.setenv(f"OPENAI_{name}", value)
        teacher = open_from_flags("openai", arguments("--cache", str(tmp_path)))
        assert teacher.ask(question("x")) == "yes"
        assert server.requests == [{"model": "mock", "temperature": 0.2, "max_tokens": 1024, "messages": question("x")}]
    kept, = tmp_path.rglob("*.json")
    assert json.loads(kept.read_text()) == {"messages": question("x"), "text": "yes", "tokens": [100, 10]}
