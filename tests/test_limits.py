"""The limits run on the shipped miniature, at a tiny size, and show what their tables say."""
import random
import re

import torch

from minillava.checkpoint import load_llava
from minillava.explain import limit_rows
from minillava.explain.limits import LIMITS, main  # noqa: F401: what `run` calls
from minillava.generate import generate
from minillava.toy.world import draw, make_scene


def test_every_limit_prints_its_table(run):
    done = run("--count", 2)
    assert done.returncode is None, done.err
    for limit in LIMITS.values():
        assert limit.__doc__.partition("\n")[0] in done.out


def test_six_are_not_counted_and_five_are():
    _, *rows = limit_rows.counting(*load_llava(dtype="float32"), 4, random.Random(0))
    right = {row[0]: row[1] for row in rows}
    assert right["three"] > 0.7 and right["six"] == right["nine"] == 0


def test_the_wording_is_that_of_the_training_but_for_what_it_tries(monkeypatch):
    asked = []
    monkeypatch.setattr(limit_rows, "ask", lambda model, tokenizer, questions, scenes: asked.extend(questions) or
                        ["No."] * len(questions))
    _, *rows = limit_rows.wording(None, None, 1, random.Random(0))
    # one thing that is there and one that is not, in five forms
    assert re.fullmatch(r"Is there an? \w+ \w+\?", asked[0]) and re.fullmatch(r"Where is the \w+ \w+\?", asked[-1])
    assert re.fullmatch(r"Is there no \w+ \w+\?", asked[4])
    assert [row[1] for row in rows] == [0.5] * 5 and [row[3] for row in rows] == [0.0] * 5


def test_the_trained_resolution_is_the_model_itself_and_a_finer_one_has_more_tokens():
    model, _ = load_llava()
    table = model.vision_tower.embeddings.position_embedding.weight
    same = limit_rows.at_resolution(model, 96)
    assert torch.allclose(same.vision_tower.embeddings.position_embedding.weight, table, atol=1e-2)
    finer = limit_rows.at_resolution(model, 192)
    assert finer.config.image_tokens == 144 and model.config.image_tokens == 36
    new = finer.vision_tower.embeddings.position_embedding.weight
    assert new.shape == (145, 96) and torch.equal(new[0], table[0])
    # neighbours of a fine grid lie between those of the coarse one: it is smoother
    assert (new[2] - new[1]).norm() < (table[2] - table[1]).norm()


def test_one_picture_asked_for_alone_is_what_generate_says():
    model, tokenizer = load_llava(dtype="float32")
    rng = random.Random(1)
    scenes = [draw(make_scene(rng, "val"), rng) for _ in range(2)]
    question = "How many shapes are there?"
    alone = limit_rows.ask_about(model, tokenizer, question, scenes[:1])
    assert alone == generate(model, tokenizer, [question], scenes[:1])[0]
    assert isinstance(limit_rows.ask_about(model, tokenizer, question, scenes), str)


def test_what_is_wrong_is_one_line(run, tmp_path):
    for words in (("nothing",), ("--count", 0), ("--model", tmp_path / "none")):
        done = run(*words)
        assert done.returncode == 2 and done.err.startswith("error: ") and "Traceback" not in done.err
