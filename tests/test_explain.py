"""The walk says what is true of the model, and draws what it says; the README's picture is the script's."""
import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from minillava.checkpoint import load_llava
from minillava.explain import walk
from minillava.explain.walk import main  # noqa: F401: what `run` calls
from minillava.generate import generate
from tests.overview import overview

ROOT = Path(__file__).parent.parent
PICTURES = ("attention.png", "words.png", "cache.png", "mask_training.png", "mask_decoding.png")  # in docs/ too


def test_the_walk_follows_the_miniature_to_its_own_answer(tmp_path, run):
    (tmp_path / "of_another_walk.png").touch()
    done = run("--out", tmp_path)
    assert done.returncode is None and "of_another_walk" not in done.out, done.err

    # shapes are those of the modules: 96 / 16 = 6, 36 patches and the class token, 36 word embeddings
    assert "96 / 16 = 6: a grid of 6 x 6" in done.out
    for shape in ("[1, 3, 96, 96]", "[1, 96, 6, 6]", "[1, 37, 96]", "[1, 36, 128]"):
        assert shape in done.out

    # token by token it comes to what `generate` answers
    model, tokenizer = load_llava()
    answer = generate(model, tokenizer, ["What do you see in the image?"], [walk.scene()])[0]
    assert f"\n  {answer}\n" in done.out

    # every learned position predicts the next one, the last the end token
    pairs = re.findall(r"^ +(\S.*?) -> +(\S.*)$", done.out, re.M)
    assert pairs[-1][1] == "'</s>'" and [p[1] for p in pairs[:-1]] == [p[0] for p in pairs[1:]]

    # the second turn's prefill is short: the picture is not run again
    first, second = map(int, re.findall(r"a prefill of (\d+) tokens", done.out))
    assert first > model.config.image_tokens > second

    # the documents show what it draws
    for name in PICTURES:
        drawn, shown = Image.open(tmp_path / name), Image.open(ROOT / "docs" / name)
        assert drawn.size == shown.size and abs(np.asarray(drawn, float) - np.asarray(shown, float)).mean() < 2, (
            f"docs/{name} is of other weights: python tests/make_docs.py draws it anew")
    assert (tmp_path / "patches.png").exists()


def test_what_is_wrong_is_one_line(tmp_path, run):
    done = run("--image", tmp_path / "none.png", "--out", tmp_path)
    assert done.returncode == 2 and "there is no image" in done.err and "Traceback" not in done.err
    done = run("--question", "How many? " * 600, "--out", tmp_path)
    assert done.returncode == 2 and "the question is too long" in done.err and "6. The answer" not in done.out


def test_the_picture_of_the_readme_is_what_its_script_draws():
    assert (ROOT / "docs/overview.svg").read_text(encoding="utf-8") == overview()
