"""Where it looked and what it needed: the maps point at the shape, and hide what they say they hide."""
import random

import pytest
import torch

from minillava.attention import attention
from minillava.checkpoint import load_llava
from minillava.explain import look as room
from minillava.explain.look import (
    after_image,
    attention_weights,
    block_of_each_token,
    color_question,
    dialogue_of,
    hottest,
    look,
    main,  # noqa: F401: what `run` calls
    measure,
    paint,
    places_of,
    seen_picture,
    touches,
    why,
)
from minillava.generate import PrefixCache, stream
from minillava.llava import IMAGE_TOKEN


@pytest.fixture(scope="module")
def toy():
    return load_llava(device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def asked():
    return color_question(random.Random(7), "val")


def test_both_point_at_the_shape_that_was_asked_about(toy):
    hits = measure(*toy, scenes=20, split="val", seed=3)
    assert hits["look"] >= 70 and hits["why"] >= 90
    assert 10 < hits["a random patch"] < 13


def test_the_command_states_its_figures(run):
    done = run("--scenes", 2, "--split", "train")
    assert [line[:16].strip() for line in done.out.splitlines()[1:]] == ["look", "why", "a random patch"]
    assert run("--model", "nowhere").returncode == 2
    none = run("--scenes", 0)
    assert none.returncode == 2 and none.err == "error: --scenes is 1 or more, not 0\n"


def test_attention_weights_are_those_that_attention_uses():
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)  # 3 tokens after 5; room for 9
    mask = torch.ones(3, 8, dtype=torch.bool).tril(5)
    for head in range(4):
        group = [head // 2]
        weights = attention_weights(q[:, [head]], k[:, group], past=5)
        assert torch.allclose(weights @ v[0, head // 2, :8], attention(q, k[:, :, :8], v[:, :, :8], mask)[0, head], atol=1e-6)


def test_a_hidden_token_says_nothing(toy, asked, monkeypatch):
    """Whatever stands in its place in the cache: the row that hides it is the same, the others are not."""
    model, tokenizer = toy
    picture, turns, color, _ = asked
    before = why(model, tokenizer, turns, picture, color)
    row, column = hottest(before)

    def disturbed(model, dialogue, image, cache, rows):
        keys_values = after_image(model, dialogue, image, cache, rows)
        for values in keys_values.values:
            values[1:, :, dialogue.image + 6 * row + column] += 100.0  # not in the first, which hides nothing
        return keys_values
    monkeypatch.setattr(room, "after_image", disturbed)
    change = (why(model, tokenizer, turns, picture, color) - before).abs()
    assert change[row, column] < 1e-4 and change.sum() > 1


def test_the_fall_is_that_of_the_log_probability(toy, asked):
    model, tokenizer = toy
    picture, turns, color, _ = asked
    dialogue = dialogue_of(model, tokenizer, turns)
    place, = places_of(color, dialogue, tokenizer)
    with torch.inference_mode():
        logits = model(torch.tensor([dialogue.ids]), room.to_pixels(model, [picture]))[0]
    likely = logits[place - 1].softmax(-1)[dialogue.ids[place]]
    falls = why(model, tokenizer, turns, picture, color)
    assert likely > 0.9 and falls.max() > 1 and falls.min() > likely.log() - 1e-4  # no probability is above 1


def test_afterwards_nothing_of_it_is_left_in_the_model(toy, asked):
    model, tokenizer = toy
    picture, turns, color, _ = asked
    cache = PrefixCache(model)
    answer = list(stream(model, tokenizer, turns[:1], picture, cache=cache))
    for method in (look, why):
        method(model, tokenizer, turns, picture, color, cache)
        with pytest.raises(ValueError, match="does not say 'elephant'"):
            method(model, tokenizer, turns, picture, "elephant", cache)
    assert not any(block.self_attn._forward_pre_hooks for block in model.language_model.layers)
    assert list(stream(model, tokenizer, turns[:1], picture, cache=cache)) == answer


def test_the_picture_is_not_run_again_when_the_cache_has_it(toy, asked, monkeypatch):
    model, tokenizer = toy
    picture, turns, color, _ = asked
    cache = PrefixCache(model)
    list(stream(model, tokenizer, turns[:1], picture, cache=cache))
    fresh = look(model, tokenizer, turns, picture, color)
    monkeypatch.setattr(model, "encode_images", None)
    assert torch.allclose(look(model, tokenizer, turns, picture, color, cache), fresh, atol=1e-6)


def test_in_batches_of_any_size_it_needs_the_same(toy, asked, monkeypatch):
    model, tokenizer = toy
    picture, turns, color, _ = asked
    whole = why(model, tokenizer, turns, picture, color)
    monkeypatch.setattr(room, "CACHE_BYTES", 500_000)
    assert room.rows_at_once(model, 60) < 10
    assert torch.allclose(why(model, tokenizer, turns, picture, color), whole, atol=1e-4)


def test_a_word_is_found_in_the_answer_of_a_later_turn(toy, asked):
    model, tokenizer = toy
    _, turns, color, _ = asked
    later = [*turns, ("human", "Where is it?"), ("gpt", f"It is a {color} one, at the top-left.")]
    dialogue = dialogue_of(model, tokenizer, later)
    assert dialogue.ids[dialogue.image] == IMAGE_TOKEN
    assert tokenizer.decode(dialogue.ids[dialogue.question : dialogue.answer]).startswith("USER: Where is it?")
    assert tokenizer.decode([dialogue.ids[i] for i in places_of(color, dialogue, tokenizer)]).strip() == color
    assert len(places_of("", dialogue, tokenizer)) == len(dialogue.ids) - dialogue.answer
    scarf = dialogue_of(model, tokenizer, [turns[0], ("gpt", "A scarf and a car.")])
    first = places_of("car", scarf, tokenizer)[0]
    assert tokenizer.decode(scarf.ids[scarf.answer : first]).endswith("scarf and a")
    with pytest.raises(ValueError, match="no answer yet"):
        look(model, tokenizer, [], None)


def test_a_fine_grid_is_hidden_in_blocks():
    assert len(block_of_each_token(36).unique()) == 36
    blocks = block_of_each_token(576).view(24, 24)
    assert len(blocks.unique()) == 64 and (blocks[:3, 3:6] == 1).all() and (blocks == 1).sum() == 9


def test_hot_patches_keep_their_colours_and_cold_ones_lie_in_the_dark(toy, asked):
    picture = asked[0]
    seen = seen_picture(toy[0], picture)
    assert max(abs(a - b) for a, b in zip(seen.tobytes(), picture.tobytes())) <= 1  # 96 x 96: nothing is cut
    heat = torch.zeros(6, 6)
    heat[1, 2] = 5.0
    painted = paint(seen, heat).resize(picture.size)
    assert painted.getpixel((40, 24)) == seen.getpixel((40, 24))
    assert painted.getpixel((80, 80)) == tuple(value // 6 for value in seen.getpixel((80, 80)))


def test_a_patch_lies_on_a_box():
    assert touches((0, 1), 6, [20, 3, 35, 18]) and touches((0, 2), 6, [20, 3, 35, 18])
    assert not touches((0, 0), 6, [20, 3, 35, 18]) and not touches((2, 1), 6, [20, 3, 35, 18])
