"""Text from outside reaches the terminal of no script unescaped: file names, ids, categories, templates, answers."""
import importlib
import json
import shutil
import signal
import sys

import pytest

from minillava.checkpoint import TOY
from tests.comparing import write_jsonl

EVIL = "a\x1b[2J\x07\u202eb\nc"  # clears the screen, rings, turns the line round, begins another


@pytest.fixture
def files(tmp_path):
    """Files with such text in their names and in themselves."""
    folder = tmp_path / EVIL
    folder.mkdir()
    sample = {"id": EVIL, "image": f"{EVIL}.png",
              "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": EVIL}]}
    (folder / "data.json").write_text(json.dumps([sample]))
    (folder / "text.png").write_text("no picture")
    reviews = [{"question_id": EVIL, "category": EVIL, "tuple": [8, 7]}] * 3
    write_jsonl(folder / "reviews.jsonl", reviews)
    question = {"question_id": EVIL, "image": f"{EVIL}.png", "text": EVIL, "category": EVIL}
    write_jsonl(folder / "questions.jsonl", [question])
    (folder / "broken.json").write_text("{")
    write_jsonl(folder / "answers.jsonl", [{"question_id": EVIL, "prompt": EVIL, "text": EVIL}])
    score = {"benchmark": "pope", "title": EVIL, "score": 1.0, "answers": 1, "unit": EVIL, "model": EVIL}
    (folder / "pope.score.json").write_text(json.dumps(score))
    shutil.copytree(TOY / "llava", folder / "model")
    config = json.loads((folder / "model/minillava.json").read_text())
    (folder / "model/minillava.json").write_text(json.dumps(config | {"prompt_format": EVIL}))
    return folder


COMMANDS = {
    "chat": ["chat", "--image", "{}/text.png", "--prompt", "What?"],
    "chat, no image": ["chat", "--image", "{}/none.png", "--prompt", "What?"],
    "chat, no model": ["chat", "--model", "{}", "--prompt", "What?"],
    "train": ["train", "--recipe", "toy-finetune", "--data", "{}/data.json", "--images", "{}", "--out", "{}/run"],
    "train, no JSON": ["train", "--recipe", "toy-finetune", "--data", "{}/broken.json", "--images", "{}",
                       "--out", "{}/run"],
    "check data": ["train", "--recipe", "toy-finetune", "--data", "{}/data.json", "--images", "{}",
                   "--out", "{}/run", "--check-data"],
    "scienceqa": ["eval_scienceqa", "--data", "{}", "--out", "{}/answers.jsonl"],
    "prompt format": ["eval_scienceqa", "--model", "{}/model"],
    "answer": ["minillava.evaluation.__main__", "answer", "--questions", "{}/questions.jsonl", "--images", "{}",
               "--out", "{}/answers.jsonl"],
    "report": ["minillava.evaluation.__main__", "report", "{}/reviews.jsonl"],
    "score": ["minillava.evaluation.__main__", "score", "llava-bench", "--answers", "{}/reviews.jsonl"],
    "score, no answers": ["minillava.evaluation.__main__", "score", "gqa", "--labels", "{}/labels.json",
                          "--answers", "{}/questions.jsonl"],
    "upload": ["minillava.evaluation.__main__", "upload", "gqa", "--answers", "{}/answers.jsonl", "--out", "{}/up.json"],
    "table": ["minillava.evaluation.__main__", "table", "{}"],
    "weights": ["minillava.weights.__main__", "apply-delta", "--base", "{}", "--delta", "{}", "--out", "{}/out"],
    "instruct": ["minillava.instruct.__main__", "--captions", "{}/broken.json", "--kinds", "brief", "--out", "{}/out"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_from_outside_commands_the_terminal(files, name, monkeypatch, capsys):
    module, *words = COMMANDS[name]
    monkeypatch.setattr(sys, "argv", [module, *(word.replace("{}", str(files)) for word in words)])
    before = signal.getsignal(signal.SIGTERM)
    try:
        code = importlib.import_module(module).main()
    except SystemExit as ended:
        code = ended.code
    finally:
        signal.signal(signal.SIGTERM, before)
    out, err = capsys.readouterr()
    assert (code or 0) == {"report": 0, "score": 0, "upload": 0, "table": 0, "check data": 1}.get(name, 2), err
    assert not any(c in out + err for c in "\x1b\x07\u202e")
    assert "\\x1b[2J" in out + err  # it was shown
    if code == 2:
        assert err.splitlines()[-1].startswith("error: ")
