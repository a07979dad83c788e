"""Hugging Face's `tokenizer.json`, and what else a model's folder says of its tokenizer.

`tokenizers` reads the file, but knows one pipeline, which writes LLaMA's dummy prefix or does not.
A conversation needs both, so the second is made by taking the prefix out.
"""
import json

import tokenizers
from tokenizers import AddedToken, models

from minillava.files import read_json
from minillava.sentencepiece import Pipelines, from_sentencepiece

# All that says how a folder's text becomes ids, here and in transformers. What one of them adds, no
# other may deny.
FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "added_tokens.json",
         "special_tokens_map.json")


def read_pipelines(folder, legacy):
    """A model's folder -> Pipelines, and the bytes of tokenizer.model if that is what was read.

    Where there are both files, `tokenizer.model` is read: it is the original, while a
    tokenizer.json was converted from it by one program or another, and the converters have had
    their errors. Only where it is not a SentencePiece BPE model (Llama 3 has a file of that name
    in another format) is tokenizer.json used. OSError if there is neither, ValueError if
    unreadable.
    """
    model_file = folder / "tokenizer.model"
    json_file = folder / "tokenizer.json"
    parsed = read_json(json_file)
    if not parsed and not model_file.exists():
        raise FileNotFoundError(f"{folder} holds neither tokenizer.model nor tokenizer.json; "
                                "copy one there")
    if type(legacy) not in (bool, type(None)):
        raise ValueError(f"{folder / 'tokenizer_config.json'}: legacy {legacy!r:.40} is neither "
                         "true nor false")
    try:
        return from_sentencepiece(model_file, legacy is not False), model_file.read_bytes()
    except (FileNotFoundError, ValueError):
        if not parsed:
            raise
        return from_json(parsed, json_file, legacy), None


def read_added_tokens(folder, config):
    """{id: AddedToken}: those added to a vocabulary, from all files that list them."""
    parsed = read_json(folder / "tokenizer.json")
    try:
        added = {}
        # This file does not say whether they are control tokens, the others do.
        for token, i in read_json(folder / "added_tokens.json").items():
            added[int(i)] = added_token({"content": token})
        for entry in parsed.get("added_tokens", []):
            added[int(entry["id"])] = added_token(entry)
        for i, entry in config.get("added_tokens_decoder", {}).items():
            added[int(i)] = added_token(entry)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        raise ValueError(f"{folder} lists added tokens in no known way; "
                         "download its files again") from None
    return added


def added_token(entry):
    """A control token; or, where it is not "special", a word that is found in a text as it is."""
    if not entry["content"]:
        raise ValueError("it has no letters")
    flags = {name: entry[name] for name in ("special", "lstrip", "rstrip", "single_word")
             if name in entry}
    return AddedToken(entry["content"], **{"special": True} | flags, normalized=False)


def from_json(parsed, path, legacy):
    """A parsed tokenizer.json -> Pipelines; legacy None: as the file has it."""
    plain = {**parsed, "padding": None, "truncation": None}
    try:
        with_prefix = tokenizers.Tokenizer.from_str(json.dumps(plain))
    except Exception as error:  # the package raises no narrower class
        raise ValueError(f"{path} is not a tokenizer ({error}); download it again") from None

    # An empty model in the same pipeline: small, and in the spelling of the installed version.
    empty = tokenizers.Tokenizer(models.BPE())
    copy_pipeline(with_prefix, empty)
    steps = json.loads(empty.to_str())
    schemes = set()
    for name in ("normalizer", "pre_tokenizer"):
        steps[name] = without_prefix_step(steps[name], schemes)

    without_prefix = tokenizers.Tokenizer(with_prefix.model)  # shared, not copied
    copy_pipeline(tokenizers.Tokenizer.from_str(json.dumps(steps)), without_prefix)
    added = with_prefix.get_added_tokens_decoder()
    without_prefix.add_tokens([token for _, token in sorted(added.items())])

    if legacy is None:
        legacy = "first" not in schemes
    return Pipelines(with_prefix, without_prefix, bool(schemes), legacy)


def copy_pipeline(old, new):
    """What happens to a text before the model sees it."""
    if old.normalizer:
        new.normalizer = old.normalizer
    if old.pre_tokenizer:
        new.pre_tokenizer = old.pre_tokenizer


def without_prefix_step(step, schemes):
    """A step of a pipeline, or None, with the prefix taken out of it.

    `schemes` notes how the prefix was written: "always", in every segment, or in the "first" one.
    """
    if not step:
        return step
    for inner in ("normalizers", "pretokenizers"):
        if inner in step:  # a Sequence
            kept = [without_prefix_step(each, schemes) for each in step[inner]]
            return {**step, inner: [each for each in kept if each]}
    if step["type"] == "Prepend":
        schemes.add("always")
        return None
    if step["type"] == "Metaspace" and step["prepend_scheme"] != "never":
        schemes.add(step["prepend_scheme"])
        return {**step, "prepend_scheme": "never"}
    return step


def byte_level_alphabet():
    """How GPT-2's and Llama 3's vocabularies write a byte as a printable character -> {char: byte}.

    188 bytes stand for themselves, the others in their order for the characters from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet |= {chr(256 + n): byte for n, byte in enumerate(other)}
    return alphabet
