"""Text to ids exactly as SentencePiece does it, and back without ever breaking a character."""
import json
import pickle
import shutil
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from minillava.tokenizer import Streamer, Tokenizer

FIXTURE = Path(__file__).parent / "fixtures" / "tokenizer"
EXPECTED = json.loads((FIXTURE / "sentencepiece.json").read_text())
VICUNA = Path(__file__).parents[2] / "shared/data/vicuna_tokenizer/tokenizer.model"  # used where it is there


def folder(path, model=FIXTURE / "tokenizer.model", **files):
    """A model folder with a tokenizer.model and JSON files beside it."""
    path.mkdir(exist_ok=True)
    if model:
        shutil.copy(model, path / "tokenizer.model")
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def tiny():
    return Tokenizer.load(FIXTURE)


def test_ids_equal_sentencepiece_on_every_text(tiny):
    assert tiny.vocab_size == EXPECTED["vocab_size"]
    for text, ids, without_prefix in zip(EXPECTED["texts"], EXPECTED["ids"], EXPECTED["ids_without_prefix"]):
        assert tiny.encode(text) == [tiny.bos_id, *ids], ascii(text)
        assert tiny.segment(text, prefix=False) == without_prefix, ascii(text)


def test_decode_equals_sentencepiece(tiny):
    for text, ids in zip(EXPECTED["texts"], EXPECTED["ids"]):
        assert tiny.decode([tiny.bos_id, *ids, tiny.eos_id]) == text.replace("▁", " ")
    for ids, text in zip(EXPECTED["random_ids"], EXPECTED["decoded"]):
        assert tiny.decode(ids) == text


@pytest.mark.parametrize("text", [*EXPECTED["texts"][20:60], "👩‍👩‍👧‍👦 𝔘 猫 é"])
def test_streaming_never_breaks_a_character(tiny, text):
    stream, ids = Streamer(tiny), tiny.encode(text)
    pieces = [stream.put(i) for i in ids] + [stream.end()]
    assert "".join(pieces) == tiny.decode(ids)
    assert "\ufffd" not in "".join(pieces)


def test_streaming_equals_decoding_where_bytes_are_no_utf8(tiny):
    for ids, text in zip(EXPECTED["random_ids"], EXPECTED["decoded"]):
        stream = Streamer(tiny)
        assert "".join([stream.put(i) for i in ids]) + stream.end() == text


def test_typed_control_tokens_are_text(tiny):
    for tokenizer in (tiny, pickle.loads(pickle.dumps(tiny))):  # as a data loader's worker gets it
        for text in ("</s>", "a<s>b", "<unk>", "<image>", "x </s>USER: y"):
            ids = tokenizer.encode(text)
            assert not {tiny.bos_id, tiny.eos_id, tiny.unk_id} & set(ids[1:])
            assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("legacy", [True, False, None])
def test_legacy_is_read_from_the_config(tmp_path, tiny, legacy):
    tokenizer = Tokenizer.load(folder(tmp_path, tokenizer_config={"legacy": legacy}))
    assert tokenizer.legacy == (legacy is not False)
    assert tokenizer.pad_id == tokenizer.unk_id  # it has no <pad>
    assert tokenizer.encode("USER") == tiny.encode("USER")  # the first segment has the prefix either way


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("keep_model", [True, False])
def test_a_saved_tokenizer_is_the_same_one(tmp_path, legacy, keep_model):
    tokenizer = Tokenizer.load(folder(tmp_path / "a", tokenizer_config={"legacy": legacy}))
    image, pad = tokenizer.add("<image>"), tokenizer.add("<pad>")
    assert (image, pad, tokenizer.vocab_size) == (560, 561, 562) and tokenizer.add("<image>") == image
    tokenizer.save(tmp_path / "b")
    assert (tmp_path / "b" / "tokenizer.model").read_bytes() == (FIXTURE / "tokenizer.model").read_bytes()
    if not keep_model:
        (tmp_path / "b" / "tokenizer.model").unlink()
    again = Tokenizer.load(tmp_path / "b")
    again.save(tmp_path / "b")  # over itself
    again = Tokenizer.load(tmp_path / "b")
    for name in ("bos_id", "eos_id", "unk_id", "pad_id", "vocab_size", "legacy"):
        assert getattr(again, name) == getattr(tokenizer, name), name
    assert again.pad_id == pad and again.add("<image>") == image
    for text in [*EXPECTED["texts"], "an <image> here"]:
        assert again.encode(text) == tokenizer.encode(text), ascii(text)
        assert again.segment(text, prefix=False) == tokenizer.segment(text, prefix=False), ascii(text)
        assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text))


def test_saving_over_another_tokenizer_leaves_none_of_its_files(tmp_path, tiny):
    tiny.save(tmp_path / "json")
    (tmp_path / "json" / "tokenizer.model").unlink()
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "json" / "tokenizer.json"))
    other.add_special_tokens(["<new>"])
    other.save(str(tmp_path / "json" / "tokenizer.json"))
    over = folder(tmp_path / "over", added_tokens={"<old>": 560})
    Tokenizer.load(tmp_path / "json").save(over)
    assert sorted(file.name for file in over.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert Tokenizer.load(over).spell([560]) == "<new>"


@pytest.mark.parametrize("legacy", [True, False])
def test_the_saved_file_splits_at_control_tokens_as_transformers_expects(tmp_path, legacy):
    """What other programs read: the pipeline of tokenizer.json itself, control tokens found in the text."""
    ours = Tokenizer.load(folder(tmp_path, tokenizer_config={"legacy": legacy}))
    ours.add("<image>")
    ours.save(tmp_path / "out")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    plain = [t for t in EXPECTED["texts"] if not any(c in t for c in ("<s>", "</s>", "<unk>", "<image>"))]
    for text in plain:
        assert theirs.encode(text).ids == ours.encode(text), ascii(text)
        assert theirs.decode(ours.encode(text)) == text.replace("▁", " ")
    ids = theirs.encode("a</s>USER: b<image> c").ids
    assert ids == [*ours.encode("a"), ours.eos_id, *ours.segment("USER: b", legacy),
                   ours.add("<image>"), *ours.segment(" c", legacy)]


def test_added_tokens_come_from_every_file_that_lists_them(tmp_path):
    v0 = {"<im_patch>": 560, "<im_start>": 561, "<im_end>": 562}
    tokenizer = Tokenizer.load(folder(tmp_path / "v0", added_tokens=v0))
    assert (*tokenizer.image_ends, tokenizer.vocab_size) == (561, 562, 563)
    assert not {560, 561, 562} & set(tokenizer.encode("<im_patch><im_start><im_end>"))
    listed = {"560": {"content": "<image>", "special": True}, "561": {"content": "<pad>", "special": True}}
    config = {"added_tokens_decoder": listed, "pad_token": "<pad>"}
    tokenizer = Tokenizer.load(folder(tmp_path / "hf", tokenizer_config=config))
    assert tokenizer.pad_id == 561 and tokenizer.image_ends is None
    with pytest.raises(ValueError, match="should have id 570"):
        Tokenizer.load(folder(tmp_path / "gap", added_tokens={"<image>": 570}))


@pytest.mark.parametrize("listed", ["tokenizer_config", "tokenizer"])
def test_an_added_word_is_text_and_stays_so(tmp_path, tiny, listed):
    word = {"id": 560, "content": "<loc>", "special": False, "lstrip": True, "rstrip": False, "single_word": False}
    files = {"tokenizer_config": {"added_tokens_decoder": {"560": word}}, "tokenizer": {"added_tokens": [word]}}
    path = folder(tmp_path / "a", added_tokens={"<loc>": 560}, **{listed: files[listed]})
    Tokenizer.load(path).save(tmp_path / "b")
    for name in ("a", "b"):
        tokenizer = Tokenizer.load(tmp_path / name)
        ids = [*tiny.segment("a"), 560, *tiny.segment("</s>")]
        assert tokenizer.segment("a <loc></s>") == ids and tokenizer.decode(ids) == "a<loc> </s>"


def test_tokenizer_model_wins_and_a_foreign_one_does_not_matter(tmp_path):
    other = tokenizers.Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "a": 2}, []))
    parsed = json.loads(other.to_str())
    assert Tokenizer.load(folder(tmp_path / "both", tokenizer=parsed)).vocab_size == 560
    (tmp_path / "both" / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")  # tiktoken's format, as in Llama 3
    assert Tokenizer.load(tmp_path / "both").vocab_size == 3


def byte_level():
    """A small tokenizer in the manner of Llama 3: bytes as letters, split by a regular expression, no prefix."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.train_from_iterator(["the cat on the mat, naïve 猫"] * 3, trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<|begin|>", "<|end|>"]))
    return core, {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}}


def metaspace(scheme):
    core = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split=True)
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(" ", 1, 0)])
    core.train_from_iterator(["the cat on the mat, naive"] * 3, trainers.BpeTrainer(
        vocab_size=300, show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]))
    core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return core, {}


@pytest.mark.parametrize("core, config, drops", ids=["byte level", "first", "always"], argvalues=[
    (*byte_level(), ""), (*metaspace("first"), " "), (*metaspace("always"), " ")])
def test_a_tokenizer_json_gives_what_the_package_gives(tmp_path, core, config, drops):
    tokenizer = Tokenizer.load(folder(tmp_path, None, tokenizer=json.loads(core.to_str()), tokenizer_config=config))
    for text in ("the cat", " on  the mat", "naïve 猫 👍🏽\n", "a <0x0A> b", ""):
        ids = core.encode(text, add_special_tokens=False).ids
        if "<0x" not in text:  # the trainer lists the bytes as control tokens: typed ones are text all the same
            assert tokenizer.encode(text) == [tokenizer.bos_id, *ids]
        assert tokenizer.decode(tokenizer.encode(text)) == text.removeprefix(drops)  # Metaspace adds no second space


@pytest.mark.parametrize("scheme, legacy", [("first", False), ("always", True)])
def test_the_prefix_of_a_tokenizer_json_can_be_left_out(tmp_path, scheme, legacy):
    core, _ = metaspace(scheme)
    parsed = json.loads(core.to_str())
    tokenizer = Tokenizer.load(folder(tmp_path, None, tokenizer=parsed))
    assert tokenizer.legacy == legacy
    assert tokenizer.segment("the") == [core.token_to_id("▁the")]
    assert tokenizer.segment("the", prefix=False) == core.encode("mthe", add_special_tokens=False).ids[2:]
    folder(tmp_path, None, tokenizer_config={"legacy": not legacy})
    assert Tokenizer.load(tmp_path).legacy != legacy


def test_old_style_prefix(tmp_path):
    """LLaMA's tokenizer.json until 2024: normalizers write the prefix."""
    core, _ = metaspace("never")
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = Tokenizer.load(folder(tmp_path, None, tokenizer=json.loads(core.to_str())))
    assert tokenizer.legacy and tokenizer.segment("the") == [core.token_to_id("▁the")]
    assert core.token_to_id("▁the") not in tokenizer.segment("the", prefix=False)


def test_ids_that_are_no_tokens_spell_nothing(tiny):
    assert tiny.decode([1, *tiny.segment("A cat"), -200, 99999, 2]) == "A cat"
    assert tiny.spell([1, *tiny.segment("A cat"), 2]) == "<s> A cat</s>"


def test_a_long_text_is_no_burden(tiny):
    """Quadratic code would take minutes here."""
    assert tiny.decode(tiny.encode("a cat " * 100_000)) == "a cat " * 100_000


@pytest.mark.parametrize("spoil, message", [
    (lambda blob: blob[: len(blob) // 2], "not a whole SentencePiece model"),
    (lambda blob: b"version https://git-lfs.github.com/spec/v1\noid sha256:9e55\n", "not a whole SentencePiece model"),
    (lambda blob: b"\x80" * 10**6, "not a whole SentencePiece model"),
    (lambda blob: b"", "not a whole SentencePiece model"),
    (lambda blob: blob + b"\x12\x02\x18\x01", "not a BPE model"),  # trainer_spec {model_type: UNIGRAM}
    (lambda blob: blob + b"\x1a\x02\x20\x01", "rewrites text"),    # normalizer_spec {remove_extra_whitespaces: true}
    (lambda blob: b"\x0a\x08\x0a\x04<se>\x18\x04" + blob, "symbols of its own"),  # a piece of type USER_DEFINED
], ids=["cut", "git-lfs", "endless number", "empty", "unigram", "whitespace", "user-defined"])
def test_a_model_that_cannot_be_read_exactly_is_refused(tmp_path, spoil, message):
    path = folder(tmp_path) / "tokenizer.model"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_bad_folders_and_bad_text(tmp_path, tiny):
    with pytest.raises(FileNotFoundError, match="neither tokenizer.model nor tokenizer.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{ half")
    with pytest.raises(ValueError, match="is not JSON"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(ValueError, match="is not a tokenizer"):
        Tokenizer.load(tmp_path)
    core, _ = byte_level()
    with pytest.raises(ValueError, match="name bos_token"):
        Tokenizer.load(folder(tmp_path, None, tokenizer=json.loads(core.to_str())))
    with pytest.raises(ValueError, match="text that is not UTF-8"):
        tiny.encode("caf\udce9")


@pytest.mark.skipif(not VICUNA.exists(), reason="LLaMA's own tokenizer.model is not part of the project")
@pytest.mark.parametrize("legacy, user", [(True, [3148, 1001]), (False, [11889])])
def test_llama(tmp_path, legacy, user):
    tokenizer = Tokenizer.load(folder(tmp_path, VICUNA, tokenizer_config={"legacy": legacy}))
    assert tokenizer.vocab_size == 32000 and tokenizer.pad_id == tokenizer.unk_id == 0
    assert tokenizer.encode(" A") == [1, 29871, 319]
    assert tokenizer.encode("x  hello") == [1, 921, 29871, 22172]
    assert tokenizer.encode(" ") == [1, 259]
    assert tokenizer.segment("USER", prefix=tokenizer.legacy) == user
