"""The scripts as a user types them: what they print, and how they say that something is wrong."""
import random
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from minillava.toy import world

ROOT = Path(__file__).parent.parent


def run(*command, typed=None):
    return subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, input=typed, capture_output=True, text=True)


@pytest.fixture
def scene(tmp_path):
    path = tmp_path / "scene.png"
    world.draw([("red circle", [3, 3, 29, 29]), ("blue star", [67, 35, 93, 61])], random.Random(0)).save(path)
    return path


def test_chat_prints_the_answer_alone(scene):
    done = run("chat.py", "--image", scene, "--prompt", "How many shapes are there?")
    assert (done.returncode, done.stdout, done.stderr) == (0, "There are two shapes.\n", "")


def test_chat_goes_on_over_turns_and_survives_wrong_commands(scene, tmp_path):
    typed = ("What shape is at the top-left?\n/image nowhere.png\n/what\nWhere is the blue star?\n/clear\n"
             "How many circles are there?\n")
    done = run("chat.py", "--image", scene, typed=typed)
    assert done.returncode == 0 and not done.stderr
    for text in ("a circle.", "there is no image nowhere.png", "no command /what", "The blue star is at the middle-right.",
                 "There is one circle."):
        assert text in done.stdout


@pytest.mark.parametrize("arguments, message", [
    (["--image", "nowhere.png"], "there is no image nowhere.png"),
    (["--image", "README.md"], "README.md is not an image"),
    (["--image", "{broken}"], "is damaged"),
    (["--model", "nowhere"], "there is no folder nowhere"),
    (["--model", "tests"], "tests has no config.json"),
    (["--temperature", "-1"], "--temperature"),
    (["--top-p", "0"], "--top-p"),
    (["--max-new-tokens", "0"], "--max-new-tokens"),
])
def test_chat_says_in_one_line_what_is_wrong(scene, tmp_path, arguments, message):
    broken = tmp_path / "broken.png"
    broken.write_bytes(scene.read_bytes()[:60])
    done = run("chat.py", "--prompt", "Hi!", *(argument.format(broken=broken) for argument in arguments))
    assert done.returncode == 2 and not done.stdout
    last = done.stderr.splitlines()[-1]
    assert message in last and last.startswith(("error: ", "chat.py: error: "))
    assert "Traceback" not in done.stderr


def test_the_miniature_of_scienceqa_is_one_command_and_is_scored_by_another(tmp_path):
    done = run("train.py", "--recipe", "toy-scienceqa", "--out", tmp_path / "run", "--scenes", 40, "--heldout", 1,
               "--epochs", 1)
    assert done.returncode == 0, done.stderr
    scored = run("eval_scienceqa.py", "--model", tmp_path / "run/llava", "--questions", 8, "--max-new-tokens", 8)
    assert scored.returncode == 0 and "scored: 8 of 8" in scored.stdout and "QCM-LEA" in scored.stdout, scored.stderr
    mixed = run("train.py", "--data", "chat.json")
    assert mixed.returncode == 2 and "go with a --recipe" in mixed.stderr


def test_train_runs_the_whole_story_and_its_result_chats(scene, tmp_path):
    done = run("train.py", "--out", tmp_path / "run", "--scenes", 48, "--heldout", 12, "--per-type", 2)
    assert done.returncode == 0, done.stderr
    assert "another picture" in done.stdout and "python chat.py --model" in done.stdout
    assert Image.open(tmp_path / "run/loss.png").size == (720, 360)
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) > 3
    again = run("train.py", "--out", tmp_path / "run")
    assert again.returncode == 2 and "holds a run already" in again.stderr
    answer = run("chat.py", "--model", tmp_path / "run/llava", "--image", scene, "--prompt", "How many shapes are there?")
    assert answer.returncode == 0 and answer.stdout.strip()
