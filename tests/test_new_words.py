"""A new word is spelled like words that are known, and goes wherever the weights go."""
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minillava.checkpoint import TOY, load_llava, save_llava
from minillava.tokenizer import Tokenizer
from minillava.toy.tokenizer import texts
from minillava.training.lora import add_lora
from minillava.training.new_words import learn_words, make_rows, read_new_word, spell_like
from minillava.training.recipes import RECIPES
from minillava.training.results import save
from minillava.weights.__main__ import main
from minillava.weights.quantize import save_quantized
from minillava.weights.saving import with_rows
from tests.comparing import message, same
from tests.test_tokenizer import byte_level, folder

FIXTURES = Path(__file__).parent / "fixtures"
COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
CPU = {"device": "cpu", "dtype": "float32"}
LORA = replace(RECIPES["own-lora"], lora=4, lora_alpha=8.0, words=True)
PINK = " A large pink star, no pinball."


@pytest.fixture
def miniature():
    """The model with rows for pink, and the tokenizer that has it."""
    model, tokenizer = load_llava(**CPU)
    return model, learn_words(model, tokenizer, [("pink", COLORS)])


def logits(model, tokenizer):
    return model(torch.tensor([tokenizer.encode(PINK)]))


# ---- spelling ----

def test_what_an_old_word_says_in_one_piece_the_new_one_says_too():
    old = Tokenizer.load(TOY / "llava")
    new, parents = spell_like(old, "pink", COLORS)
    assert new.pieces(" a small pink star") == ["▁a", "▁small▁pink▁star"]
    assert sorted(parents) == list(range(old.vocab_size, new.vocab_size))
    for text in ["<image></s> <s>", *texts(random.Random(0), scenes=20)]:
        pink = text.replace("purple", "pink")
        assert new.encode(text) == old.encode(text) and new.decode(new.encode(pink)) == pink
        assert [piece.replace("pink", "purple") for piece in new.pieces(pink)] == old.pieces(text)


def test_where_no_pattern_cuts_a_text_first(tmp_path):
    """SentencePiece's: the word after a space and, as there is a red without one, alone. tokenizer.model goes."""
    new, parents = spell_like(Tokenizer.load(FIXTURES / "tokenizer"), "redball", ("red", "cat"))
    new.save(tmp_path)
    assert not (tmp_path / "tokenizer.model").exists()
    again = Tokenizer.load(tmp_path)
    assert again.pieces(" a redball and redballs (redball)") == ["▁a", "▁redball", "▁and", "▁redball", "s", "▁", "(",
                                                                "redball", ")"]
    expected = json.loads((FIXTURES / "tokenizer" / "sentencepiece.json").read_text())
    for text, ids, without_prefix in zip(expected["texts"], expected["ids"], expected["ids_without_prefix"]):
        assert (again.segment(text), again.segment(text, prefix=False)) == (ids, without_prefix), ascii(text)
    likes = {again._tokens[i]: [again._tokens[j] for j in like] for i, like in parents.items()}
    assert likes["▁redball"] == ["▁cat", "▁red"] and likes["redball"] == ["red"]
    assert likes["▁redba"] == ["▁red", "ba"]  # on the way to it


def test_a_word_of_letters_that_stand_for_bytes(tmp_path):
    core, config = byte_level()
    old = Tokenizer.load(folder(tmp_path, None, tokenizer=json.loads(core.to_str()), tokenizer_config=config))
    new, parents = spell_like(old, "naïf", ("cat", "mat"))
    assert len(new.pieces(" naïf")) == 1 and new.decode(new.encode("the naïf cat, naïve 猫")) == "the naïf cat, naïve 猫"
    assert parents[new.segment(" naïf", prefix=False)[0]] == [*old.segment(" cat"), *old.segment(" mat")]


def test_two_words_one_like_the_other(miniature):
    model, tokenizer = miniature
    again = learn_words(model, tokenizer, [("mauve", ("pink",))])
    assert again.pieces(" small mauve circle") == ["▁small▁mauve▁circle"]
    assert again.pieces(" small pink circle") == ["▁small▁pink▁circle"]


@pytest.mark.parametrize("text, said", [
    ("pink", "is not NEW=OLD,OLD"), ("pink=", "is not NEW=OLD,OLD"), ("deep pink=red", "is not NEW=OLD,OLD"),
    ("pink=red,crimson", "crimson is no word of one piece"), ("red=blue", "has it in one piece already"),
    ("猫=red", "a character that the tokenizer does not know")])
def test_what_is_no_word_to_learn(text, said):
    tokenizer = Tokenizer.load(TOY / "llava")
    assert said in message(ValueError, lambda: spell_like(tokenizer, *read_new_word(text)))


# ---- rows ----

def test_rows_begin_as_the_mean_of_their_siblings(miniature):
    model, tokenizer = miniature
    before, _ = load_llava(**CPU)
    names = [f"▁small▁{color}▁star" for color in COLORS]
    for layer in ("embed_tokens", "lm_head"):
        rows = model.get_parameter(f"language_model.{layer}.weight")
        old = before.get_parameter(f"language_model.{layer}.weight")
        assert torch.equal(rows[: len(old)], old) and len(rows) == tokenizer.vocab_size
        like = torch.stack([old[tokenizer._ids[name]] for name in names])
        torch.testing.assert_close(rows[tokenizer._ids["▁small▁pink▁star"]], like.mean(0))
    assert model.config.language_config.vocab_size == tokenizer.vocab_size


def test_rows_that_only_pad_a_table_are_used():
    model, tokenizer = load_llava(**CPU)
    size = tokenizer.vocab_size + 64
    for name, rows in with_rows(dict(model.named_parameters()), size).items():
        model.get_parameter(name).data = rows.detach()
    model.config = replace(model.config, language_config=replace(model.config.language_config, vocab_size=size))
    make_rows(model, {size - 60: [300, 301]})
    rows = model.language_model.lm_head.weight
    assert len(rows) == size == model.config.language_config.vocab_size
    torch.testing.assert_close(rows[size - 60], rows[300:302].mean(0))


def test_a_head_that_is_tied_stays_so():
    model, tokenizer = load_llava(vision=FIXTURES / "clip", language=FIXTURES / "llama_tied", projector="linear", **CPU)
    make_rows(model, {model.config.language_config.vocab_size: [5, 6]})
    assert model.language_model.lm_head.weight is model.language_model.embed_tokens.weight


# ---- where the weights go ----

def test_a_whole_model_with_the_word_saved_and_read_again(miniature, tmp_path):
    model, tokenizer = miniature
    save_llava(model, tokenizer, tmp_path)
    again, its_tokenizer = load_llava(tmp_path, **CPU)
    assert its_tokenizer.encode(PINK) == tokenizer.encode(PINK)
    assert torch.equal(logits(again, its_tokenizer), logits(model, tokenizer))


def test_an_adapter_brings_the_word_to_its_base(miniature, tmp_path, monkeypatch):
    model, tokenizer = miniature
    add_lora(model, LORA.lora, LORA.lora_alpha, LORA.words)
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    torch.manual_seed(0)
    for p in weights.values():
        p.data += 0.02 * torch.randn_like(p)
    adapter, plain = tmp_path / "adapter", tmp_path / "plain"
    save(weights, model, tokenizer, LORA, TOY / "llava", adapter)

    merged, its_tokenizer = load_llava(adapter, **CPU)
    torch.testing.assert_close(logits(merged, its_tokenizer), logits(model, tokenizer), rtol=1e-4, atol=1e-4)
    beside, its_tokenizer = load_llava(adapter, quantize="int8", **CPU)
    assert logits(beside, its_tokenizer).shape[-1] == tokenizer.vocab_size
    monkeypatch.setattr("sys.argv", ["weights", "merge", "--adapter", str(adapter), "--out", str(plain)])
    main()
    in_bf16, _ = load_llava(adapter, device="cpu")
    again, its_tokenizer = load_llava(plain, device="cpu")
    assert same(again, in_bf16) and its_tokenizer.encode(PINK) == tokenizer.encode(PINK)

    # weights of few bits are made when it is loaded, and not before: its head would stand beside another's scales
    save_quantized(*load_llava(device="cpu", quantize="int8"), tmp_path / "int8", "int8")
    assert "int8 has in few bits: give the plain base" in message(ValueError, load_llava, adapter, base=tmp_path / "int8")

    # upon a base of more words it has no place, nor upon its own without the tokenizer that names its words
    save_llava(again, learn_words(again, its_tokenizer, [("mauve", ("pink",))]), tmp_path / "other")
    assert "belongs to another base" in message(ValueError, load_llava, adapter, base=tmp_path / "other")
    (adapter / "tokenizer.json").unlink()
    assert "belongs to another base" in message(ValueError, load_llava, adapter)
