"""The scripts as a user types them: what they print, and how they say that something is wrong."""
import json
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

    # a second round goes on from it: stage 2 alone, on new scenes
    second = run("train.py", "--init", tmp_path / "run", "--out", tmp_path / "second", "--scenes", 12, "--heldout", 12,
                 "--per-type", 1, "--seed", 1, "--lr", 5e-4)
    assert second.returncode == 0 and "another picture" in second.stdout, second.stderr
    asked = json.loads((tmp_path / "second/config.json").read_text())
    assert asked["settings"]["init"] == str(tmp_path / "run") and asked["recipe"]["muon_lr"] == 0.0035
    assert not (tmp_path / "second/pretrain").exists()
