"""Text <-> ids, over a Hugging Face `tokenizer.json` or LLaMA's SentencePiece `tokenizer.model`.

Two rules hold everywhere. Text is only text: `</s>`, `<s>` or `<image>` typed by somebody become ordinary characters, and
a control token enters the ids as an id, put there by conversation.py. And a text is encoded in segments: what stands
between two control tokens is one segment, and LLaMA writes a space before it (the dummy prefix `▁`) or not.
"""
import codecs
import json
import re
from pathlib import Path

import tokenizers

SPACE = "▁"  # how SentencePiece writes a space
BYTE = re.compile("<0x([0-9A-F]{2})>")  # a byte of a character that has no piece of its own


class Tokenizer:
    """bos_id, eos_id, unk_id, pad_id: ids; vocab_size: one more than the highest id."""

    def __init__(self, core, config):
        """core: the parsed tokenizer.json; config: the parsed tokenizer_config.json, {} if there is none."""
        self.added = {t["content"]: t["id"] for t in core["added_tokens"]}
        self.prefix, self.legacy, pipeline = split_off_prefix(core)
        self._core = tokenizers.Tokenizer.from_str(json.dumps(pipeline))
        vocab = {**core["model"]["vocab"], **self.added}
        self.vocab_size = max(vocab.values()) + 1
        find = lambda name, default: vocab.get(token_text(config.get(name)) or default)
        self.bos_id, self.eos_id = find("bos_token", "<s>"), find("eos_token", "</s>")
        self.unk_id, self.pad_id = find("unk_token", "<unk>"), find("pad_token", "<pad>")
        if self.pad_id is None:
            self.pad_id = self.unk_id if self.unk_id is not None else self.eos_id
        self.image_start_id, self.image_end_id = self.added.get("<im_start>"), self.added.get("<im_end>")
        self._bytes = [b""] * self.vocab_size  # what each id spells; control tokens spell nothing
        for token, i in core["model"]["vocab"].items():
            if token not in self.added or BYTE.fullmatch(token):
                self._bytes[i] = spell(token)
        self._json, self._config = core, config

    @classmethod
    def load(cls, folder):
        folder = Path(folder)
        core = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        path = folder / "tokenizer_config.json"
        return cls(core, json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})

    def encode(self, text):
        """A string -> list of ids, BOS first."""
        return [self.bos_id, *self.segment(text)]

    def segment(self, text, prefix=True):
        """Ids of a stretch of text without BOS; prefix=False where it continues the text before it."""
        if not text:
            return []
        if prefix and self.prefix:
            text = self.prefix + text
        return self._core.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        """A list of ids -> the string they spell, control tokens skipped."""
        stream = self.streamer()
        return stream.put(*ids) + stream.end()

    def streamer(self):
        return Streamer(self)

    def save(self, folder):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(json.dumps(self._json, ensure_ascii=False, indent=1), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(self._config, indent=2), encoding="utf-8")


class Streamer:
    """Ids in, text out, never half a UTF-8 character: `put` returns what is certain, `end` the rest."""

    def __init__(self, tokenizer):
        self._bytes, self._first = tokenizer._bytes, bool(tokenizer.prefix)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def put(self, *ids):
        spelled = b"".join([self._bytes[i] for i in ids])
        if self._first and spelled:  # the dummy prefix is no part of the text
            spelled, self._first = spelled.removeprefix(b" "), False
        return self._utf8.decode(spelled)

    def end(self):
        return self._utf8.decode(b"", final=True)


def token_text(token):
    """tokenizer_config.json names a token by its text or by a dict around it."""
    return token["content"] if isinstance(token, dict) else token


def spell(token):
    byte = BYTE.fullmatch(token)
    return bytes.fromhex(byte[1]) if byte else token.replace(SPACE, " ").encode()


def split_off_prefix(core):
    """The dummy prefix is taken out of the pipeline of a tokenizer.json and left to `segment`.

    Returns (prefix, legacy, pipeline); legacy: every segment gets the prefix, not only the first of a text.
    """
    core = {**core, "added_tokens": [], "post_processor": None}
    norm, pre = core.get("normalizer"), core.get("pre_tokenizer")
    if norm and norm["type"] == "Sequence" and norm["normalizers"][0]["type"] == "Prepend":
        core["normalizer"] = {"type": "Sequence", "normalizers": norm["normalizers"][1:]}
        return norm["normalizers"][0]["prepend"], True, core
    if pre and pre["type"] == "Metaspace" and pre.get("prepend_scheme", "always") != "never":
        core["pre_tokenizer"] = {**pre, "prepend_scheme": "never"}
        return pre["replacement"], pre.get("prepend_scheme", "always") == "always", core
    return "", True, core
