"""A cache, a batch and a later turn change what an answer costs, never the answer."""
import copy
import math
import mmap
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from minillava.checkpoint import TOY, load_language, load_llava, load_vision
from minillava.conversation import render
from minillava.generate import (Answer, PrefixCache, answer_limits, generate, generate_naively, new_cache, prompt_ids,
                                sample_token, stream, to_pixels)
from minillava.llama import with_room
from minillava.llava import IMAGE_TOKEN
from minillava.toy.annotations import as_fractions
from minillava.toy.objects import read
from minillava.toy.questions import QUESTIONS
from minillava.toy.world import draw, make_scene


def a_scene():
    rng = random.Random(1)
    return draw(make_scene(rng, "val"), rng)


def pictures(count):
    torch.manual_seed(3)
    return [Image.fromarray(torch.randint(0, 256, (96, 96, 3), dtype=torch.uint8).numpy()) for _ in range(count)]


@pytest.fixture(scope="module")
def toy():
    return load_llava(device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("chunk", [1, 7, 500])
def test_cached_equals_uncached_at_every_position_in_a_batch_of_unequal_length(toy, chunk):
    model, _ = toy
    N, V = model.config.image_tokens, model.config.language_config.vocab_size
    torch.manual_seed(0)
    rows = [torch.randint(3, V, (length,)) for length in (20, 3, 11)]
    rows = [torch.cat([row[:2], torch.full((N,), IMAGE_TOKEN), row[2:]]) for row in rows]
    pixels, longest = torch.randn(3, 3, 96, 96), max(map(len, rows))
    start = torch.tensor([longest - len(row) for row in rows])
    padded = torch.stack([torch.cat([torch.zeros(int(pad), dtype=torch.int64), row]) for pad, row in zip(start, rows)])
    cache = new_cache(model, 3, start)
    with torch.inference_mode():
        embeddings = model.embed(padded, pixels)
        hidden = torch.cat([model.language_model(embeddings[:, i : i + chunk], cache) for i in range(0, longest, chunk)], 1)
        for row, pad, states, picture in zip(rows, start, model.language_model.lm_head(hidden), pixels):
            alone = model(row[None], picture[None])[0]
            assert (states[pad:] - alone).norm() <= 1e-5 * alone.norm()


def test_a_batch_answers_as_one_by_one(toy):
    prompts = ["How many shapes are there?", "Hello!", "Describe the image in detail."]
    images = [pictures(2)[0], None, pictures(2)[1]]
    single = [generate(*toy, [prompt], [image], max_new_tokens=24)[0] for prompt, image in zip(prompts, images)]
    assert generate(*toy, prompts, images, max_new_tokens=24) == single


def test_an_answer_equals_the_one_of_running_everything_again_for_each_word(toy):
    model, tokenizer = toy
    prompts, images = ["How many shapes are there?", "Hello!", "What is at the center?"], [*pictures(1), None, *pictures(1)]
    answers = generate(*toy, prompts, images, max_new_tokens=20)
    for prompt, image, answer in zip(prompts, images, answers):
        input_ids = torch.tensor([prompt_ids(model, tokenizer, prompt, image, "")])
        ids = generate_naively(model, input_ids, to_pixels(model, [image] if image else []), 20)[0].tolist()
        ids = ids[: ids.index(tokenizer.eos_id)] if tokenizer.eos_id in ids else ids
        assert tokenizer.decode(ids).strip() == answer


def test_new_words_leave_out_the_kernel_that_is_planned_for_each_length(toy, monkeypatch):
    asked = set()
    sdpa, allowed = F.scaled_dot_product_attention, torch.backends.cuda.cudnn_sdp_enabled
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, *rest, **more: (
        asked.add((q.shape[2] == 1, allowed())), sdpa(q, *rest, **more))[1])
    generate(*toy, ["What do you see?", "Why?"], [a_scene()] * 2, max_new_tokens=3)
    assert asked == {(False, True), (True, False)} and allowed()


def test_an_answer_with_a_prefix_goes_on_as_if_the_model_had_written_it(toy):
    prompts, images = ["How many shapes are there?", "Describe the image in detail."], pictures(2)
    whole = generate(*toy, prompts, images, max_new_tokens=30)
    prefixes = [" ".join(text.split()[:2]) for text in whole]  # "There are", "The image"
    rest = generate(*toy, prompts, images, max_new_tokens=28, answer_prefix=prefixes)
    assert [f"{start} {text}" for start, text in zip(prefixes, rest)] == whole


def test_an_answer_ends_where_the_context_does_batched_or_alone(toy, monkeypatch):
    model, tokenizer = toy
    context = model.config.language_config.max_position_embeddings
    tokens = lambda text: len(render([("human", text), ("gpt", None)], tokenizer, model.config.template, 0)[0])
    one = tokens("How many? " * 2) - tokens("How many? ")
    long = "How many? " * ((context - tokens("") - 20) // one)
    assert 0 < context - tokens(long) < 60
    alone = [generate(*toy, [prompt], [None], 80)[0] for prompt in (long, "Hello!")]
    assert generate(*toy, [long, "Hello!"], [None, None], 80) == alone
    with pytest.raises(ValueError, match="no room for an answer"):
        generate(*toy, [long * 2], [None])

    # an answer that never ends by itself: the word is drawn whatever the model says
    [word] = tokenizer.segment("how", prefix=False)[:1]
    monkeypatch.setattr("minillava.generate.sample_token", lambda logits, *_, **__: torch.full((len(logits),), word))
    alone = [generate(*toy, [prompt], [None], 80)[0] for prompt in (long, "Hello!")]
    assert len(alone[0]) < len(alone[1]) and generate(*toy, [long, "Hello!"], [None, None], 80) == alone


def test_an_answer_may_fill_the_context_to_its_last_token(toy):
    model, _ = toy
    context = model.config.language_config.max_position_embeddings
    assert answer_limits(model, [[0] * 30, [0] * (context - 1)], 10**6) == [context - 30, 1]


def test_the_same_question_twice_runs_one_token_again(toy):
    cache = PrefixCache(toy[0])
    assert cache.reuse([1, 5, 6]) == [1, 5, 6]
    cache.keys_values.length = 3
    assert cache.reuse([1, 5, 6]) == [6] and cache.keys_values.length == 2


def test_a_prompt_that_ends_with_its_image_runs_it_whole_again(toy):
    model, tokenizer = copy.copy(toy[0]), toy[1]
    model.config = replace(model.config, template="plain")
    (image,), cache = pictures(1), PrefixCache(model)
    first, again = ([*stream(model, tokenizer, [("human", "<image>")], image, 5, cache=cache)] for _ in range(2))
    assert first == again


def test_an_answer_that_overflowed_leaves_nothing_to_the_next(toy, monkeypatch):
    """Its NaN lie in what the next prompt would keep, and behind it; the formula multiplies that too, by 0."""
    monkeypatch.setattr("minillava.attention.MANY", 1)
    monkeypatch.setattr("minillava.attention.AMX", False)
    image, = pictures(1)
    turns, cache = [("human", "<image>\nHow many shapes are there?")], PrefixCache(toy[0])
    answer = list(stream(*toy, turns, image))
    with monkeypatch.context() as patched, pytest.raises(ValueError, match="output is NaN"):
        norm = toy[0].language_model.layers[1].input_layernorm
        patched.setattr(norm, "forward", lambda x: math.nan * x)
        list(stream(*toy, turns, image, cache=cache))
    assert cache.keys_values.values[1].shape[2] and not any(values.isnan().any() for values in cache.keys_values.values)
    assert list(stream(*toy, turns, image, cache=cache)) == answer


def test_a_cache_grows_and_changes_nothing(toy, monkeypatch):
    model, tokenizer = toy
    image, = pictures(1)
    turns = [("human", "<image>\nDescribe the image in detail.")]
    ample = [generate(*toy, ["Hello!"], [image], 20), list(stream(*toy, turns, image, 20))]
    monkeypatch.setattr("minillava.llama.GROWTH", 1)
    assert [generate(*toy, ["Hello!"], [image], 20), list(stream(*toy, turns, image, 20))] == ample


def test_a_cache_lies_beside_the_heap_and_is_given_back_whole():
    """In the heap each growth would leave gaps: a 7B took 0.7 GB more after 1,300 tokens."""
    x = torch.randn(2, 3, 5, 8).to(torch.bfloat16)
    larger = with_room(x, 9)
    assert larger.data_ptr() % mmap.PAGESIZE == 0
    assert torch.equal(larger[:, :, :5], x) and not larger[:, :, 5:].any()


def test_a_context_of_a_billion_tokens_costs_what_is_used_of_it(toy):
    model, tokenizer = toy
    config = replace(model.config.language_config, max_position_embeddings=10**9)
    long = copy.copy(model)
    long.config = replace(model.config, language_config=config)
    assert generate(long, tokenizer, ["Hello!"], [None], 10**9) == generate(*toy, ["Hello!"], [None])
    assert list(stream(long, tokenizer, [("human", "Hello!")])) == list(stream(*toy, [("human", "Hello!")]))


@pytest.mark.parametrize("numbers, message", [
    ({"temperature": math.nan}, "temperature"), ({"temperature": math.inf}, "temperature"),
    ({"temperature": -1}, "temperature"), ({"top_p": math.nan}, "top-p"), ({"top_p": 0}, "top-p"),
    ({"top_p": 1.5}, "top-p"), ({"max_new_tokens": 0}, "1 token or more"),
    ({"top_k": -1}, "top-k"), ({"repetition_penalty": math.nan}, "penalty"), ({"repetition_penalty": 0}, "penalty"),
    ({"repetition_penalty": 1e-300}, "penalty"), ({"repetition_penalty": 1e300}, "penalty")])
def test_numbers_that_nothing_can_be_drawn_with(toy, numbers, message):
    with pytest.raises(ValueError, match=message):
        generate(*toy, ["Hello!"], [None], **numbers)
    with pytest.raises(ValueError, match=message):
        next(stream(*toy, [("human", "Hello!")], **numbers))


@pytest.mark.parametrize("prompts, images, settings, error, message", [
    ("H", [None], {}, ValueError, "a list of questions"), (["Hello!"], None, {}, ValueError, "as many images"),
    (["Hello!"], [], {}, ValueError, "as many images"), ([], [], {}, ValueError, "a list of questions"),
    (["Hello!"], ["photo.jpg"], {}, TypeError, "str is no PIL image; load_image"),
    (["Hello!"], [None], {"stop": "end"}, ValueError, "stop is a list of texts")])
def test_arguments_of_another_kind_are_told_apart_from_bugs(toy, prompts, images, settings, error, message):
    with pytest.raises(error, match=message):
        generate(*toy, prompts, images, **settings)


def test_an_image_that_no_turn_points_at_is_not_dropped_in_silence(toy):
    with pytest.raises(ValueError, match="no turn has <image>"):
        next(stream(*toy, [("human", "How many shapes are there?")], a_scene()))


def test_a_model_that_computes_nan_says_so():
    model, tokenizer = load_llava(device="cpu", dtype=torch.float32)
    model.language_model.layers[1].mlp.up_proj.weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="output is NaN"):
        generate(model, tokenizer, ["Hello!"], [None])


def test_a_later_turn_runs_only_its_new_tokens_and_answers_as_if_all_were_run(toy, monkeypatch):
    model, tokenizer = toy
    (image,), cache, turns, run = pictures(1), PrefixCache(model), [], []
    monkeypatch.setattr(model.language_model.layers[0], "forward", counting(model.language_model.layers[0].forward, run))
    for question in ("<image>\nHow many shapes are there?", "Where is the red circle?", "What shape is at the center?"):
        turns.append(("human", question))
        fresh = "".join(stream(model, tokenizer, turns, image, max_new_tokens=30))
        run.clear()
        answer = "".join(stream(model, tokenizer, turns, image, max_new_tokens=30, cache=cache))
        assert answer == fresh
        turns.append(("gpt", answer))
    assert run[0] < 25  # the end of turn two and the question: neither the image nor the system text
    other = [("human", "<image>\nIs there a star?")]  # a conversation that goes another way from the first word
    assert list(stream(model, tokenizer, other, image, 30, cache=cache)) == list(stream(model, tokenizer, other, image, 30))


@pytest.mark.parametrize("fault", [torch.OutOfMemoryError("out of memory"), KeyboardInterrupt()])
def test_a_cache_that_could_not_grow_in_all_layers_serves_the_next_question(toy, monkeypatch, fault):
    cache, grown = PrefixCache(toy[0]), iter(range(99))
    list(stream(*toy, [("human", "Hello!")], max_new_tokens=2, cache=cache))

    def interrupted(*args):
        if next(grown) == 3:
            raise fault
        return with_room(*args)
    with monkeypatch.context() as patched, pytest.raises(type(fault)):
        patched.setattr("minillava.llama.with_room", interrupted)
        list(stream(*toy, [("human", "How many? " * 200)], cache=cache))
    turns = [("human", "How many? " * 90)]  # more room than before the fault, less than it was to be
    assert list(stream(*toy, turns, max_new_tokens=9, cache=cache)) == list(stream(*toy, turns, max_new_tokens=9))


def counting(forward, run):
    def counted(x, *args):
        run.append(x.shape[1])
        return forward(x, *args)
    return counted


def test_a_full_context_is_an_error_before_it_is_a_wrong_answer(toy):
    model, tokenizer = toy
    with pytest.raises(ValueError, match="context ends at"):
        list(stream(model, tokenizer, [("human", "How many? " * 600)]))


def test_top_p_keeps_the_smallest_set_that_holds_p():
    torch.manual_seed(0)
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(500, -1)
    assert set(sample_token(logits, temperature=1.0, top_p=0.7).tolist()) == {0, 1}
    assert set(sample_token(logits, temperature=1.0, top_p=1.0).tolist()) == {0, 1, 2, 3}
    for likeliest in ({}, {"temperature": 1.0, "top_p": 1e-9}, {"temperature": 1.0, "top_p": 1e-300}, {"temperature": 1e-40}):
        assert set(sample_token(logits, **likeliest).tolist()) == {0}


@pytest.mark.parametrize("settings, kept", [
    ({}, [0.4, 0.25, 0.2, 0.1, 0.05]),
    ({"temperature": 0.5}, [0.16, 0.0625, 0.04, 0.01, 0.0025]),     # the squares, to be divided by their sum
    ({"top_k": 3}, [0.4, 0.25, 0.2, 0, 0]),
    ({"top_p": 0.6}, [0.4, 0.25, 0, 0, 0]),
    ({"top_k": 3, "top_p": 0.7}, [0.4, 0.25, 0, 0, 0]),             # of the three, two hold 0.65 / 0.85
])
def test_words_are_drawn_from_the_distribution_that_is_claimed(settings, kept):
    torch.manual_seed(0)
    places = torch.tensor([3, 0, 4, 1, 2])                            # not in the order of likelihood
    logits = torch.tensor([0.4, 0.25, 0.2, 0.1, 0.05]).log()[places].expand(20000, -1)
    claimed = torch.tensor(kept)[places] / sum(kept)
    drawn = sample_token(logits, **{"temperature": 1.0, **settings}).bincount(minlength=5)
    expected = 20000 * claimed
    assert not drawn[claimed == 0].any()
    chi_square = ((drawn - expected) ** 2 / expected)[claimed > 0].sum()
    assert chi_square < 18.5  # exceeded once in 1,000 times, with the four degrees of freedom of five words


def test_a_penalty_makes_less_likely_what_the_answer_has_already():
    logits = torch.tensor([[2.0, 1.5, -0.1, -0.15]])
    written = torch.tensor([[0, 0, 2]])
    assert sample_token(logits, written).item() == 0
    assert sample_token(logits, written, repetition_penalty=1.5).item() == 1       # 2 / 1.5 is less than 1.5
    assert sample_token(logits[:, 2:], written[:, 2:] - 2, repetition_penalty=2.0).item() == 1
    assert sample_token(logits, written[:, :0], repetition_penalty=9.0).item() == 0


def test_with_a_penalty_an_answer_says_no_word_twice(toy):
    model, tokenizer = toy
    turns, image = [("human", "<image>\nDescribe the image in detail.")], a_scene()
    cache = PrefixCache(model)
    list(stream(*toy, turns, image, 12, repetition_penalty=100, cache=cache))
    answer = cache.ids[-12:]
    assert len(set(answer)) == 12
    assert "".join(stream(*toy, turns, image, 60)).count("There") > 1


def test_an_answer_ends_before_a_text_of_ones_own(toy):
    turns, image = [("human", "<image>\nDescribe the image in detail.")], a_scene()
    whole = "".join(stream(*toy, turns, image))
    cut = "".join(stream(*toy, turns, image, stop=("no such text", ". There", "There is")))
    assert cut == whole.split(". There")[0] != whole
    assert generate(*toy, ["Describe the image in detail."], [image], stop=[". There"]) == [cut.strip()]


def test_an_answer_stops_at_the_templates_stop_and_never_shows_a_part_of_it(toy):
    _, tokenizer = toy
    for text, expected in (("a b\n### Human: c", "a b\n"), ("a ## b", "a ## b"), ("a ##", "a ##")):
        answer = Answer(tokenizer, "llava_v0")
        shown = "".join(answer.put(i) for i in tokenizer.segment(text))
        assert not answer.done or "#" not in shown
        assert shown + answer.end() == answer.text == expected
    answer = Answer(tokenizer, "llava_v0")
    shown = "".join(answer.put(i) for i in [*tokenizer.segment("a ##"), tokenizer.eos_id])
    assert shown == "a ##" and answer.done  # the end token lets out what was held back


def test_the_shipped_miniature_sees(toy):
    rng = random.Random(1)
    scenes = [make_scene(rng, "val") for _ in range(100)]
    asked = [QUESTIONS[rng.choice(("total", "size", "position"))](read(as_fractions(scene)), rng) for scene in scenes]
    kept = [(draw(scene, rng), *pair) for scene, pair in zip(scenes, asked) if pair]
    images, questions, expected = zip(*kept)
    answers = generate(*toy, questions, images, max_new_tokens=40)
    right = sum(answer == truth for answer, truth in zip(answers, expected))
    assert right >= 0.95 * len(kept)  # 0.2 without seeing


def test_the_miniature_and_its_backbones_are_small_and_load_strictly():
    assert sum(file.stat().st_size for name in ("clip", "vicuna", "llava") for file in (TOY / name).iterdir()) <= 8e6
    vision, (language, _), (model, _) = load_vision(TOY / "clip"), load_language(TOY / "vicuna"), load_llava()
    assert model.config.vision_config == replace(vision.config, num_hidden_layers=3)  # the last never runs
    assert model.config.language_config.hidden_size == language.config.hidden_size


def test_top_k_does_not_choose_between_words_that_are_as_likely():
    torch.manual_seed(0)
    logits = torch.tensor([[3.0, 2.0, 2.0, 2.0, 1.0]]).expand(500, -1)
    assert set(sample_token(logits, temperature=1.0, top_k=2).tolist()) == {0, 1, 2, 3}
