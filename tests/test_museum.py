"""Each bug of the museum really breaks what it is about, and is gone behind its `with`."""
import io
import random
import sys

import pytest
import torch

from minillava import checkpoint, data, generate, images, llama
from minillava.checkpoint import TOY, load_llava
from minillava.conversation import human_turn
from minillava.data import LlavaData, collate
from minillava.explain import bugs
from minillava.explain.commands import write_sample
from minillava.explain.curves import as_picture, in_characters
from minillava.explain.exhibits import EXHIBITS
from minillava.explain.museum import main  # noqa: F401: what `run` calls
from minillava.llava import IGNORE_INDEX, Llava, LlavaConfig
from minillava.toy import world

BACKBONES = {"vision": TOY / "clip", "language": TOY / "vicuna", "dtype": "float32",
             "projector": TOY / "pretrain" / "mm_projector.bin"}


def scene(seed=5):
    rng = random.Random(seed)
    return world.draw(world.make_scene(rng, "val"), rng)


def places():
    """Whatever a bug may replace."""
    return [checkpoint.compose, checkpoint.read_llava_folder, data.render, generate.render,
            images.normalize, llama.rotate, Llava.embed, LlavaConfig.image_tokens]


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """-> a function: two samples as the training gets them, read anew."""
    folder = tmp_path_factory.mktemp("samples")
    for n in range(2):
        turns = [human_turn("What color is the circle?", image=True), ("gpt", "The circle is red.")]
        write_sample(folder / f"{n}.json", turns, scene(n))

    def read(model, tokenizer):
        parts = [LlavaData(folder / f"{n}.json", folder, tokenizer, model.config) for n in range(2)]
        return collate([part[0] for part in parts])
    return read


def loss_of(batch):
    """The first loss of stage 2, with whatever is patched."""
    model, tokenizer = load_llava(**BACKBONES)
    input_ids, labels, pixels = batch(model, tokenizer)
    with torch.no_grad():
        return model(input_ids, pixels, labels).item(), input_ids, labels


def test_every_bug_is_undone_even_where_what_runs_in_it_fails():
    before = places()
    for exhibit in EXHIBITS.values():
        with pytest.raises(KeyError), exhibit.bug():
            assert places() != before, exhibit.title
            raise KeyError
        assert places() == before, exhibit.title


def test_bugs_of_the_labels_change_who_learns_what(batch):
    healthy, ids, labels = loss_of(batch)
    learned = labels != IGNORE_INDEX

    with bugs.every_label_masked():
        loss, _, masked = loss_of(batch)
    assert loss == 0 and (masked == IGNORE_INDEX).all()

    # the label that the model looks up at t + 1 is the token at t, or the one at t + 2
    with bugs.labels_not_shifted():
        _, _, late = loss_of(batch)
    assert torch.equal(late[:, 1:], labels[:, :-1])
    with bugs.labels_shifted_twice():
        loss, _, early = loss_of(batch)
    assert torch.equal(early[:, :-1], labels[:, 1:]) and loss > 2 * healthy

    with bugs.prompt_trained():
        _, _, whole = loss_of(batch)
    assert torch.equal(whole[learned], labels[learned])
    assert ((whole != IGNORE_INDEX) == (ids >= 0)).all()


def test_bugs_of_the_weights_load_all_but_one_part(batch):
    def changed():
        """Which parts are not what lies on the disk."""
        model, _ = load_llava(**BACKBONES)
        return {name.split(".")[0] for name, x in model.state_dict().items()
                if x.ndim == 2 and not torch.equal(x, healthy[name])}

    healthy = load_llava(**BACKBONES)[0].state_dict()
    with bugs.weights_not_loaded():
        assert changed() == {"language_model"}
        # ln 903 = 6.8: it knows no word
        assert loss_of(batch)[0] > 5
    with bugs.no_stage_1():
        assert changed() == {"mm_projector"}
    assert changed() == set()


def test_a_row_short_is_silent_with_the_bug_and_an_error_without(batch):
    with bugs.one_row_of_patches_short():
        loss, ids, _ = loss_of(batch)
    assert loss > 0 and (ids < 0).sum() == 2 * 30
    model, tokenizer = load_llava(**BACKBONES)
    _, labels, pixels = batch(model, tokenizer)
    with pytest.raises(ValueError, match="60 image tokens"):
        model(ids, pixels)


def test_bugs_of_evaluation_change_the_answers():
    def answers():
        model, tokenizer = load_llava()
        scenes = [scene(n) for n in range(6)]
        return generate.generate(model, tokenizer, ["What do you see in the image?"] * 6, scenes)

    healthy = answers()
    for name in ("wrong-template", "wrong-mean", "bgr", "rope", "other-projector"):
        with EXHIBITS[name].bug():
            assert answers() != healthy, name


def test_interleaved_rope_turns_as_far_but_other_channels():
    config = load_llava()[0].config.language_config
    rope = llama.rotary_table(config, 3, "cpu", torch.float32)[:, None]
    x = torch.randn(1, 1, 3, config.head_dim)
    healthy = llama.rotate(x, rope)
    with bugs.rope_interleaved():
        turned = llama.rotate(x, rope)
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    assert torch.equal(turned[:, :, 0], x[:, :, 0]) and not torch.allclose(turned, healthy)
    # channels 0 and 1 are a point: at position 1 it is turned by 1 radian
    a, b = x[0, 0, 1, :2]
    assert torch.allclose(turned[0, 0, 1, 0], a * torch.tensor(1.0).cos() - b * torch.tensor(1.0).sin())


def test_an_exhibit_trains_once_and_shows_both(tmp_path, run):
    words = ("all-masked", "--scenes", 20, "--per-type", 1, "--out", tmp_path)
    done = run(*words)
    assert done.returncode is None, done.err
    assert "x every label masked" in done.out and "issues/779" in done.out
    assert "patch.object(data, \"render\", render_and_compare)" in done.out
    assert [float(x) for x in done.out.split("the last steps")[1].split()[:2]][1] == 0
    assert list(tmp_path.rglob("all-masked.png"))

    # the second time nothing is trained: what is kept is shown
    again = run(*words)
    assert again.out == done.out and "stage 2" not in again.err


def test_the_quiz_hides_the_name_and_ends_with_its_input(tmp_path, run, monkeypatch):
    monkeypatch.setattr("minillava.explain.train_script.TRAIN", tmp_path / "no_training_here.py")
    monkeypatch.setattr("minillava.explain.museum.EXHIBITS",
                        {name: EXHIBITS[name] for name in ("rope", "bgr", "wrong-mean", "wrong-template")})
    monkeypatch.setattr(sys, "stdin", io.StringIO("nine\n1\n"))
    done = run("--quiz", "--scenes", 20, "--per-type", 1, "--out", tmp_path)
    assert done.returncode is None, done.err
    first, _, _ = done.out.partition("a number from 1 to 4")
    assert all(EXHIBITS[name].title in first for name in ("rope", "bgr"))
    assert "patch.object" not in first and "Case 2 of 4" in done.out
    assert done.out.rstrip().endswith("of 1 found.")


def test_what_is_wrong_is_one_line(tmp_path, run):
    for words in (("rope", "--quiz"), ("rope", "--scenes", 1)):
        done = run(*words, "--out", tmp_path)
        assert done.returncode == 2 and done.err.startswith("error: ") and "Traceback" not in done.err


def test_curves_stand_on_one_scale(tmp_path):
    lines = in_characters({"healthy": [2.0, 0.5], "bug": [2.0, 0.0]}, columns=4, rows=5)
    assert lines[0].split("|") == ["   2.000 ", "xx"]     # the later one hides the earlier
    assert lines[1].endswith("  oo") and lines[4].split("|") == ["   0.001 ", "  xx"]
    as_picture({"healthy": [2.0, 0.5], "bug": [2.0, 0.0]}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
