"""The data engine: symbols in, LLaVA-JSON out, with a real server as teacher."""
import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minillava.data import LlavaData
from minillava.instruct.__main__ import main
from minillava.instruct.captions import brief_samples, thin_captions
from minillava.instruct.replies import instructions, parse_reply, question_list
from minillava.instruct.samples import jobs_for, make_samples
from minillava.instruct.symbols import choose, describe, read_symbols, samples_per_kind
from minillava.instruct.teacher import free_teacher
from minillava.toy import annotations, objects, questions, teacher, world
from minillava.toy.instruct import TEACHERS, toy_samples
from tests.comparing import write_jsonl
from tests.servers import environment, serving

ROOT = Path(__file__).parent.parent
COCO = ROOT / "../shared/data/coco/caps_boxes_coco2014_val_80.jsonl"
TALK = "Question:\nWhat is it?\n===\nAnswer:\nA cat.\n\nIt sleeps.\n===\nQuestion:\nWhere?\n===\nAnswer:\nOn a mat."


def told(request):
    """What a request tells of its picture, and of which kind it is."""
    system, text = (request["messages"][i]["content"] for i in (0, -1))
    return text, next(kind for kind in ("conversation", "reasoning", "detail") if kind in system)


def reply_to(request):
    text, kind = told(request)
    return f"The cat of: {text.splitlines()[0]}." if kind == "detail" else TALK


def asking(behave):
    """A teacher that is a function of the request, and the requests it got."""
    got = []

    def ask(messages):
        got.append({"messages": messages})
        return behave(got[-1])
    return free_teacher(ask), got


def samples_of(symbols, counts, teacher, seed):
    return make_samples(symbols, jobs_for(symbols, counts, seed), teacher, seed)


@pytest.fixture
def coco(tmp_path):
    """Two files as COCO's, with what real ones have: an image without caption, one without object, stray spaces."""
    images = [{"id": i, "file_name": f"{i:012}.jpg", "width": 640, "height": 480} for i in (7, 9, 11)]
    captions = [{"id": i, "image_id": 7, "caption": f" Caption {i}\n of seven. "} for i in range(5)]
    captions += [{"id": 9, "image_id": 9, "caption": "Nothing."}]
    categories = [{"id": 44, "name": "cat"}, {"id": 90, "name": "potted plant"}]
    boxes = [{"id": 1, "image_id": 7, "category_id": 90, "bbox": [0, 48, 403.2, 432]},
             {"id": 2, "image_id": 7, "category_id": 44, "bbox": [100.25, 100.25, 33.3, 44.4]},
             {"id": 3, "image_id": 11, "category_id": 44, "bbox": [0, 0, 1, 1]}]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    instances = {"images": images, "annotations": boxes, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    return tmp_path / "captions.json", tmp_path / "instances.json"


def test_coco_files_are_read_as_symbols(coco):
    symbols = read_symbols(*coco)
    assert list(symbols) == ["000000000007.jpg", "000000000009.jpg", "000000000011.jpg"]
    captions, boxes = symbols["000000000007.jpg"]
    assert captions == [f"Caption {i} of seven." for i in range(5)]
    assert boxes == [("potted plant", [0.0, 0.1, 0.63, 1.0]), ("cat", [0.157, 0.209, 0.209, 0.301])]
    text = "\n".join(captions) + "\n\npotted plant: [0.0, 0.1, 0.63, 1.0]\ncat: [0.157, 0.209, 0.209, 0.301]"
    assert describe("detail", captions, boxes) == describe("reasoning", captions, boxes) == text
    assert describe("conversation", captions, boxes) == "\n".join(captions)
    assert symbols["000000000009.jpg"] == (["Nothing."], []) and symbols["000000000011.jpg"][0] == []
    assert read_symbols(coco[0])["000000000007.jpg"] == (captions, [])


def test_half_a_character_in_a_caption_costs_no_run(tmp_path, run):
    symbols = write_jsonl(tmp_path / "s.jsonl", [{"image": "1.jpg", "captions": ["A cat \ud83d sleeps."]}])
    done = run("--captions", symbols, "--kinds", "brief", "--keep-all",
               "--out", tmp_path / "out.json")
    assert done.returncode == 0, done.err
    assert "A cat ? sleeps." in (tmp_path / "out.json").read_text(encoding="utf-8")


def test_the_request_is_instructions_examples_and_the_picture_describe(coco):
    teacher, got = asking(reply_to)
    name = "000000000007.jpg"
    symbols = {name: read_symbols(*coco)[name]}
    samples_of(symbols, {"conversation": 1, "detail": 1, "reasoning": 1}, teacher, seed=0)
    by_kind = {told(request)[1]: request["messages"] for request in got}
    for kind, examples in (("conversation", 2), ("detail", 3), ("reasoning", 3)):
        messages = by_kind[kind]
        assert [m["role"] for m in messages] == ["system"] + examples * ["user", "assistant"] + ["user"]
        assert messages[-1]["content"] == describe(kind, *symbols[name])
        for user, assistant in zip(messages[1:-1:2], messages[2:-1:2]):  # the examples keep the rules that they teach
            assert bool(re.search(r"^[\w ]+: \[", user["content"], re.M)) == (kind != "conversation")
            assert len(user["content"].split("\n\n")[0].splitlines()) == 5
            assert parse_reply(kind, assistant["content"])
    assert len(question_list("brief")) == 11 and len(question_list("detail")) == 16
    assert len(set(question_list("detail"))) == 16


@pytest.mark.parametrize("kind, reply, pairs", [
    ("conversation", TALK, [("What is it?", "A cat.\n\nIt sleeps."), ("Where?", "On a mat.")]),
    ("reasoning", "Question:\nWhy?\n===\nAnswer:\nSo.", [("Why?", "So.")]),
    ("reasoning", "\n question: Why?  \n=====\n answer: a = b == c.\n", [("Why?", "a = b == c.")]),
    ("detail", " One.\n\nTwo.\n", [(None, "One.\n\nTwo.")]),
    ("reasoning", "Question:\r\nWhy?\r\n===\r\nAnswer:\r\nSo.\r\nYes.\r\n", [("Why?", "So.\nYes.")]),
    ("reasoning", "**Question:**\nWhy?\n===\n**Answer**: So.", [("Why?", "So.")]),
    ("reasoning", "```\n### Question:\nWhy?\n===\nAnswer:\nSo.\n```\n", [("Why?", "So.")]),
    ("detail", "```text\nOne.\n```", [(None, "One.")]),
    ("detail", "The sign says: I'm sorry.", [(None, "The sign says: I'm sorry.")]),
])
def test_a_reply_is_read(kind, reply, pairs):
    assert parse_reply(kind, reply) == pairs


@pytest.mark.parametrize("kind, reply, reason", [
    ("conversation", "Sure! Here it is.\n===\nQuestion:\nWhat?", "block 1 does not begin with Question:"),
    ("conversation", "Question:\nWhat?", "has no answer"),
    ("conversation", TALK + "\n===\nQuestion:\nWho?", "has no answer"),
    ("conversation", "Question:\nWhat?\n===\nAnswer:\n", "empty"),
    ("conversation", "Question:\nWhat?\n===\nQuestion:\nWho?", "block 2 does not begin with Answer:"),
    ("reasoning", TALK[:-3], "ends in the middle"),
    ("detail", "The cat at [0.1, 0.2, 0.3, 1.0] sleeps.", "box"),
    ("detail", "An <image> of a cat.", "<image>"),
    ("detail", TALK, "questions and answers"),
    ("detail", "", "empty"),
    ("detail", "I\u2019m sorry, I cannot see it.", "refusal"),
    ("detail", "**Question:** What?", "questions and answers"),
    ("conversation", TALK.replace("A cat.", "As an AI model, I cannot see it."), "refusal"),
])
def test_a_malformed_reply_is_told_from_a_good_one(kind, reply, reason):
    with pytest.raises(ValueError, match=reason):
        parse_reply(kind, reply)


SYMBOLS = {f"{i:02}.jpg": ([f"Picture {i}."] * 5, [("cat", [0.0, 0.0, 0.5, 0.5])]) for i in range(40)}


def test_samples_are_llava_json(tmp_path):
    teacher, _ = asking(reply_to)
    samples, rejects = samples_of(SYMBOLS, {"conversation": 20, "detail": 30}, teacher, seed=3)
    assert (len(samples), rejects) == (50, [])
    first = [sample["conversations"][0]["value"] for sample in samples]
    assert all(text.startswith("<image>\n") != text.endswith("\n<image>") for text in first)
    assert 10 < sum(text.startswith("<image>\n") for text in first) < 40  # a coin's throw for each
    assert samples[0]["conversations"][1:] == [
        {"from": "gpt", "value": "A cat.\n\nIt sleeps."}, {"from": "human", "value": "Where?"},
        {"from": "gpt", "value": "On a mat."}]
    details = [sample for sample in samples if sample["id"].endswith("_detail")]
    assert {text.replace("<image>", "").strip() for text in first[20:]} <= set(question_list("detail"))
    assert len(details) == len({sample["image"] for sample in details}) == 30
    for sample in details:
        assert sample["id"] == f"{Path(sample['image']).stem}_detail"
        assert sample["conversations"][1]["value"] == f"The cat of: {SYMBOLS[sample['image']][0][0]}."
    assert samples_of(SYMBOLS, {"conversation": 20, "detail": 30}, asking(reply_to)[0], seed=3)[0] == samples
    assert samples_of(SYMBOLS, {"conversation": 20, "detail": 30}, asking(reply_to)[0], seed=4)[0] != samples


def test_a_malformed_reply_is_asked_for_again_once_then_set_aside():
    def behave(request):
        text, _ = told(request)
        if "Picture 1." in text:
            return "What a cat!"
        return TALK if "Picture 2." in text or "Write it anew" in text else "Question:\nWhat?"

    teacher, got = asking(behave)
    symbols = {name: SYMBOLS[name] for name in ("01.jpg", "02.jpg", "03.jpg")}
    samples, rejects = samples_of(symbols, {"conversation": 3}, teacher, 0)
    assert sorted(sample["image"] for sample in samples) == ["02.jpg", "03.jpg"]
    assert rejects == [{"id": "01_conversation", "image": "01.jpg", "kind": "conversation",
                        "reason": "block 1 does not begin with Question:", "reply": "What a cat!"}]
    assert len(got) == 5
    again = [told(request)[0] for request in got if "Write it anew" in told(request)[0]]
    assert sorted(re.search(r"no good: (.*)\.\)", text)[1] for text in again) == [
        "block 1 does not begin with Question:", "the last question has no answer"]


def test_the_papers_mix_is_the_default():
    kinds = ["conversation", "detail", "reasoning"]
    assert samples_per_kind(kinds, 158, 1000) == {"conversation": 58, "detail": 23, "reasoning": 77}
    assert samples_per_kind(kinds, 10, 1000) == {"conversation": 4, "detail": 1, "reasoning": 5}
    assert sum(samples_per_kind(kinds, 101, 1000).values()) == 101
    assert samples_per_kind(kinds, None, 770) == {"conversation": 580, "detail": 230, "reasoning": 770}
    assert samples_per_kind(["detail"], None, 80) == {"detail": 80}
    assert choose(SYMBOLS, 9, "x") == choose(SYMBOLS, 30, "x")[:9]  # more of them: the cache still serves
    with pytest.raises(ValueError, match="41 samples of a kind are asked for, and there are pictures for 40"):
        choose(SYMBOLS, 41, "x")


def test_captions_are_thinned_by_concept():
    captions = {f"common{i}": f"the dog {i}" for i in range(300)}
    captions |= {f"rare{i}": "a zebra and a gnu" for i in range(2)}
    captions |= {f"kept{i}": "dog with a kite" for i in range(5)}
    captions["function words"] = "the one with the other"
    names, counts = thin_captions(captions, random.Random(0))
    assert counts == {"concepts": 4, "rare": 2, "common": 1}
    assert {f"kept{i}" for i in range(5)} <= set(names) and not {"rare0", "rare1", "function words"} & set(names)
    assert 100 <= len(names) <= 105 and len(set(names)) == len(names)  # 100 dogs, and kites among or beside them
    assert names == thin_captions(captions, random.Random(0))[0] != thin_captions(captions, random.Random(1))[0]


def test_brief_samples_are_one_caption_and_one_question_of_the_list():
    symbols = {f"{i}.jpg": ([f"cat {i} a", f"cat {i} b"], []) for i in range(50)}
    samples, counts = brief_samples(symbols, seed=0)
    assert counts == {"concepts": 1, "rare": 0, "common": 0} and [s["image"] for s in samples] == list(symbols)
    asked = {sample["conversations"][0]["value"].replace("<image>", "").strip() for sample in samples}
    assert asked <= set(question_list("brief"))
    assert {s["conversations"][1]["value"][-1] for s in samples} == {"a", "b"}
    assert len(brief_samples(symbols, 0, count=7)[0]) == 7


def test_pictures_of_one_name_in_two_folders_have_two_ids():
    symbols = {name: (["A cat."], []) for name in ("a/1.png", "b/1.png", "a/2.png")}
    samples, _ = brief_samples(symbols, seed=0, thinned=False)
    assert [sample["id"] for sample in samples] == ["a/1.png_brief", "b/1.png_brief", "2_brief"]
    samples, _ = samples_of(symbols, {"detail": 3}, asking(reply_to)[0], seed=0)
    assert {sample["id"] for sample in samples} == {"a/1.png_detail", "b/1.png_detail", "2_detail"}


def test_the_toy_teacher_reads_from_captions_what_it_reads_from_boxes():
    rng = random.Random(5)
    for _ in range(50):
        boxes = annotations.as_fractions(world.make_scene(rng, "train"))
        text = "\n".join(objects.captions_of(boxes, rng))
        system = instructions("detail")[0]["content"]
        told = [teacher.ask([{"role": "system", "content": system}, {"role": "user", "content": symbols}])
                for symbols in (text, text + "\n\n" + "\n".join(f"{name}: {box}" for name, box in boxes))]
        assert told[0] == told[1]


def test_the_miniatures_data_is_made_by_the_engine():
    rng, symbols = random.Random(0), {}
    for i in range(60):
        boxes = annotations.as_fractions(world.make_scene(rng, "train"))
        symbols[f"{i}.png"] = objects.captions_of(boxes, rng), boxes
    kinds = {"brief": 1.0, "conversation": 1.0, "detail": 0.4, "reasoning": 1.0, "text": 0.05}
    samples = toy_samples(symbols, kinds, seed=0)
    counts = {kind: [s for s in samples if s["id"].endswith(f"_{kind}")] for kind in kinds}
    sizes = {kind: len(found) for kind, found in counts.items()}
    assert sizes == dict(brief=60, conversation=60, detail=24, reasoning=60, text=3)
    assert all("image" not in s and "<image>" not in s["conversations"][0]["value"] for s in counts["text"])
    for sample in counts["reasoning"] + counts["conversation"]:
        for human, gpt in zip(sample["conversations"][::2], sample["conversations"][1::2]):
            things = objects.read(symbols[sample["image"]][1])  # what it says is true of its picture
            question, rng = human["value"].replace("<image>", "").strip(), random.Random(0)
            pairs = (ask(things, rng) for _ in range(3000) for ask in questions.QUESTIONS.values())
            assert next(pair[1] for pair in pairs if pair and pair[0] == question) == gpt["value"]
    assert samples == toy_samples(symbols, kinds, seed=0) != toy_samples(symbols, kinds, seed=1)


# ---------------------------------------------------------------------------------------------------------- the command

def command(*typed):
    return [sys.executable, "-m", "minillava.instruct", *map(str, typed)]


@pytest.fixture
def jsonl(tmp_path):
    rows = [{"id": name[:-4], "image": name, "captions": captions,
             "instances": [{"category": category, "bbox": box} for category, box in boxes]}
            for name, (captions, boxes) in SYMBOLS.items()]
    return write_jsonl(tmp_path / "symbols.jsonl", rows)


def test_a_run_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(jsonl, tmp_path, run):
    def behave(server, request):
        time.sleep(0.03)
        return reply_to(request)

    with serving(behave) as server:
        named = environment(server, OPENAI_API_KEY="sk-secret-of-the-test")
        typed = ["--captions", jsonl, "--count", "60", "--teacher", "openai", "--concurrency", "2", "--out"]
        first = subprocess.Popen(command(*typed, tmp_path / "a.json", "--cache", tmp_path / "a"), cwd=ROOT,
                                 env=os.environ | named, stdout=-1, stderr=-1)
        while len(server.requests) < 20:
            assert first.poll() is None, first.stderr.read()
            time.sleep(0.005)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        assert not (tmp_path / "a.json").exists() and len(server.requests) < 60
        again = run(*typed, tmp_path / "a.json", "--cache", tmp_path / "a", **named)
        assert again.returncode == 0, again.err
        assert len(server.requests) <= 60 + 2  # what was under way is asked again, nothing else
        before = len(server.requests)
        assert run(*typed, tmp_path / "b.json", "--cache", tmp_path / "a", **named).returncode == 0
        assert len(server.requests) == before  # a rerun is free
        assert run(*typed, tmp_path / "c.json", "--cache", tmp_path / "c", **named).returncode == 0
    assert len({(tmp_path / name).read_bytes() for name in ("a.json", "b.json", "c.json")}) == 1
    assert "sk-secret" not in again.out + again.err
    assert not any(b"sk-secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert "60 samples are in" in again.out and "0 replies were set aside" in again.out
    table = {line.split()[0]: line.split()[1] for line in again.out.splitlines()}
    assert (table["conversation"], table["detail"], table["reasoning"]) == ("22", "9", "29")


@pytest.fixture
def toy_main(monkeypatch):
    """`run` then types the command of the toy world, where the template teacher is at hand."""
    monkeypatch.setattr(sys.modules[__name__], "main", functools.partial(main, TEACHERS, questions.DETAIL))


def test_the_toy_world_through_the_command_trains(tmp_path, toy_main, run):
    from minillava.checkpoint import load_llava
    annotations.make_world(tmp_path, "train", 30, seed=0)
    captions, instances = tmp_path / "captions_train.json", tmp_path / "instances_train.json"
    for kinds, expected in (("conversation,detail,reasoning", 22 + 8 + 30), ("brief", 30)):
        done = run("--captions", captions, "--instances", instances, "--kinds", kinds, "--teacher", "toy", "--keep-all",
                   "--out", tmp_path / "data.json")
        assert done.returncode == 0 and f"{expected} samples are in" in done.out, done.err
        model, tokenizer = load_llava(device="cpu")
        data = LlavaData(tmp_path / "data.json", tmp_path / "train", tokenizer, model.config,
                         "plain" if kinds == "brief" else "vicuna_v1")
        assert len(data) == expected and all((data[i]["labels"] >= 0).any() for i in range(0, expected, 7))


def test_a_teacher_that_knows_nothing_of_the_pictures_is_no_success(coco, tmp_path, toy_main, run):
    captions, instances = coco
    done = run("--captions", captions, "--instances", instances, "--kinds", "detail",
               "--teacher", "toy", "--out", tmp_path / "out.json")
    assert done.returncode == 1 and not (tmp_path / "out.json").exists()
    assert "the toy teacher knows the toy world alone" in done.err


@pytest.mark.parametrize("typed, message", [
    (["--captions", "nowhere.json"], "No such file"),
    (["--captions", str(ROOT / "README.md")], "README.md is not written as COCO's files are"),
    (["--captions", "{tmp}/list.json"], "list.json is not written as COCO's files are"),
    (["--captions", "{tmp}/latin-1.json"], "latin-1.json is not UTF-8 text"),
    (["--captions", "{tmp}/a_text.jsonl", "--kinds", "brief"], "the captions of 1.jpg are no list"),
    (["--captions", "{tmp}/a_number.jsonl", "--kinds", "brief"], "an image's name is a text, not 5"),
    (["--captions", "{tmp}/twice.jsonl", "--kinds", "brief"], "twice.jsonl has 1.jpg in several rows"),
    (["--captions", "{tmp}/no_name.json", "--kinds", "brief"], "an image's name is a text, not None"),
    (["--captions", "{tmp}/deep.json"], "deep.json is not written as COCO's files are"),
    (["--captions", "{tmp}/captions.json", "--kinds", "brief"], "--keep-all does not thin them"),
    (["--captions", "{tmp}/captions.json"], "--instances"),
    (["--captions", "{tmp}/captions.json", "--instances", "{tmp}/captions.json"], "captions.json is not written as"),
    (["--captions", "{tmp}/captions.json", "--kinds", "talk"], "--kinds"),
    (["--captions", "{tmp}/out.json", "--kinds", "brief"], "out.json is what is read"),
    (["--captions", "{tmp}/captions.json", "--kinds", "brief,detail"], "--kinds"),
    (["--captions", "{tmp}/captions.json", "--kinds", "conversation", "--teacher", "toy", "--count", "3"], "for 2"),
    (["--captions", "{tmp}/captions.json", "--kinds", "conversation"], "--teacher"),
])
def test_what_is_wrong_with_the_input_is_one_line(coco, tmp_path, toy_main, run, typed, message):
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "latin-1.json").write_bytes('{"images": "café"}'.encode("latin-1"))
    (tmp_path / "a_text.jsonl").write_text(json.dumps({"image": "1.jpg", "captions": "A cat."}))
    (tmp_path / "a_number.jsonl").write_text(json.dumps({"image": 5, "captions": ["A cat."]}))
    write_jsonl(tmp_path / "twice.jsonl", [{"image": "1.jpg", "captions": [text]} for text in ("A cat.", "A pet.")])
    (tmp_path / "no_name.json").write_text(json.dumps({"images": [{"id": 1, "file_name": None}], "annotations": []}))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    done = run(*(word.format(tmp=tmp_path) for word in typed), "--out", tmp_path / "out.json")
    assert done.returncode == 2 and "Traceback" not in done.err and not (tmp_path / "out.json").exists()
    assert message in done.err.splitlines()[-1] and done.err.splitlines()[-1].startswith("error: ")


@pytest.mark.skipif(not COCO.exists(), reason="the real COCO symbols are not here")
def test_real_symbols(tmp_path):
    symbols = read_symbols(COCO)
    assert len(symbols) == 80 and sum(len(boxes) for _, boxes in symbols.values()) > 400
    teacher, _ = asking(reply_to)
    counts = samples_per_kind(["conversation", "detail", "reasoning"], 158, 80)
    samples, rejects = samples_of(symbols, counts, teacher, 0)
    assert (len(samples), rejects) == (158, [])
