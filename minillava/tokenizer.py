"""Text <-> ids, over LLaMA's SentencePiece `tokenizer.model` or a Hugging Face `tokenizer.json`.

Two rules hold everywhere. Text is only text: `</s>`, `<s>` or `<image>` typed by somebody become ordinary characters;
a control token enters the ids as an id, put there by conversation.py. And a text is encoded in segments, the stretches
between control tokens: LLaMA begins a segment with a space that nobody wrote, the dummy prefix `▁`, or does not.

`legacy` (in tokenizer_config.json; true for a tokenizer.model without it) says which segments have the prefix: all of
them, as in Vicuna v0 to v1.3, or only the first one of a text, as in Vicuna v1.5.
"""
import codecs
import json
import re
from pathlib import Path

import tokenizers

from minillava.files import read_json
from minillava.sentencepiece import SPACE, from_sentencepiece, rebuild

# All that says how a folder's text becomes ids, here and in transformers; what one of them adds, no other may deny.
FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "added_tokens.json", "special_tokens_map.json")
BYTE = re.compile("<0x([0-9A-F]{2})>")  # a piece that is one byte of a character without a piece of its own


class Tokenizer:
    """`bos_id, eos_id, unk_id, pad_id` (the last two may be None), `vocab_size` (the highest id + 1), `legacy`, and
    `image_start_id, image_end_id`: the tokens around an image in LLaVA v0 and v1.1, None in all later models."""

    def __init__(self, first, rest, prefix, legacy, config, model=None):
        """first, rest: `tokenizers` pipelines for the first segment of a text and for one without the dummy prefix;
        prefix: whether the former writes one at all; config and model: tokenizer_config.json, tokenizer.model."""
        self._first, self._rest, self._prefix, self.legacy = first, rest, prefix, legacy
        self._config, self._model = config, model
        self.__setstate__({})
        self._index()

    def __setstate__(self, state):
        """Pickling, as for a data loader's worker, would lose the switch that makes typed control tokens text."""
        self.__dict__.update(state)
        self._first.encode_special_tokens = self._rest.encode_special_tokens = True

    def _index(self):
        """What is looked up by token or by id."""
        added = self._first.get_added_tokens_decoder()
        self._ids = self._first.get_vocab(with_added_tokens=True)
        self._tokens = {i: token for token, i in self._ids.items()}
        self.vocab_size = max(self._tokens) + 1
        spell = byte_level_speller() if "ByteLevel" in repr(self._first.decoder) else spell_piece
        self._bytes = {i: b"" if i in added and added[i].special and not BYTE.fullmatch(token) else spell(token)
                       for i, token in self._tokens.items()}
        ids = {}
        for name, default in (("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>"), ("pad", "<pad>")):
            token = self._config.get(f"{name}_token") or default  # old LLaMA folders have "" here
            ids[name] = self._ids.get(str(token.get("content") if isinstance(token, dict) else token))
        self.bos_id, self.eos_id, self.unk_id = ids["bos"], ids["eos"], ids["unk"]
        self.pad_id = self.unk_id if ids["pad"] is None else ids["pad"]
        if self.bos_id is None or self.eos_id is None:
            raise ValueError("the tokenizer has no <s> or </s>; name bos_token and eos_token in tokenizer_config.json")
        self.image_start_id, self.image_end_id = self._ids.get("<im_start>"), self._ids.get("<im_end>")

    @classmethod
    def load(cls, folder):
        """The tokenizer of a model folder.

        Where there are both files, `tokenizer.model` is read: it is the original, while a tokenizer.json was converted
        from it by one program or another, and the converters have had their errors. Only where tokenizer.model is not
        a SentencePiece BPE model (Llama 3 has a file of that name in another format) is tokenizer.json used. Added
        tokens are collected from all the files that list them. OSError if there is neither, ValueError if unreadable.
        """
        folder = Path(folder)
        model_file, json_file = folder / "tokenizer.model", folder / "tokenizer.json"
        config = read_json(folder / "tokenizer_config.json")
        parsed = read_json(json_file)
        if not parsed and not model_file.exists():
            raise FileNotFoundError(f"{folder} holds neither tokenizer.model nor tokenizer.json; copy one there")
        legacy = config.get("legacy")
        if type(legacy) not in (bool, type(None)):
            raise ValueError(f"{folder / 'tokenizer_config.json'}: legacy {legacy!r:.40} is neither true nor false")
        try:
            self = cls(*from_sentencepiece(model_file, legacy is not False), config, model_file.read_bytes())
        except (FileNotFoundError, ValueError):
            if not parsed:
                raise
            self = cls(*from_json(parsed, json_file, legacy), config)
        try:
            added = {int(t["id"]): str(t["content"]) for t in parsed.get("added_tokens", [])}
            added |= {int(i): str(t["content"]) for i, t in config.get("added_tokens_decoder", {}).items()}
            added |= {int(i): token for token, i in read_json(folder / "added_tokens.json").items()}
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            raise ValueError(f"{folder} lists added tokens in no known way; download its files again") from None
        for i, token in sorted(added.items()):
            if self.add(token) != i:
                raise ValueError(f"{folder}: added token {token!r} should have id {i}, but {self._ids[token]} is next")
        return self

    def add(self, token):
        """Gives a control token such as <image> the next free id, if it has none yet; returns its id."""
        if token not in self._ids:
            for pipeline in (self._first, self._rest):
                pipeline.add_special_tokens([token])
            self._index()
        return self._ids[token]

    def encode(self, text):
        """A string -> list of ids, BOS first."""
        return [self.bos_id, *self.segment(text)]

    def segment(self, text, first=True):
        """Ids of one stretch of text, without BOS; first=False leaves out the dummy prefix."""
        if not text:
            return []
        try:
            return (self._first if first else self._rest).encode(text, add_special_tokens=False).ids
        except TypeError:
            raise ValueError(f"{text!r:.80} is not a string of Unicode characters (half a surrogate pair?)") from None

    def decode(self, ids):
        """A list of ids -> the text they spell; control and image tokens and unknown ids spell nothing."""
        stream = self.streamer()
        return stream.put(*ids) + stream.end()

    def streamer(self):
        """A Streamer for ids that come in one by one."""
        return Streamer(self)

    def spell(self, ids):
        """As decode(), but nothing is hidden: control tokens by their names, other ids as <id>, the dummy prefix."""
        spelled = [self._bytes.get(i) or self._tokens.get(i, f"<{i}>").encode() for i in ids]
        return b"".join(spelled).decode("utf-8", "one_mark_per_byte")

    def save(self, folder):
        """Writes tokenizer.json and tokenizer_config.json, for transformers' AutoTokenizer too, and tokenizer.model.
        Files of a tokenizer that was there before are removed: its tokenizer.model would be read in place of ours."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for file in FILES:
            (folder / file).unlink(missing_ok=True)
        self._first.save(str(folder / "tokenizer.json"), pretty=False)
        if self._model:
            (folder / "tokenizer.model").write_bytes(self._model)
        names = {"bos_token": self.bos_id, "eos_token": self.eos_id, "unk_token": self.unk_id, "pad_token": self.pad_id}
        config = self._config | {name: self._tokens[i] for name, i in names.items() if i is not None}
        # This class runs tokenizer.json as it is; LlamaTokenizer of transformers 5 would build another pipeline.
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        config["legacy"] = self.legacy
        text = json.dumps(config, ensure_ascii=False, indent=2)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


class Streamer:
    """Ids in, text out, never half a UTF-8 character: `put` returns what has become certain, `end` the rest."""

    def __init__(self, tokenizer):
        self._tokens, self._bytes, self._prefix = tokenizer._tokens, tokenizer._bytes, tokenizer._prefix
        self._utf8 = codecs.getincrementaldecoder("utf-8")("one_mark_per_byte")

    def put(self, *ids):
        ids = [int(i) for i in ids]  # a tensor's elements would not be found
        spelled = b"".join([self._bytes.get(i, b"") for i in ids])
        if self._prefix and spelled:  # at the start: the dummy prefix is no part of the text
            start = next(i for i in ids if self._bytes.get(i))
            spelled, self._prefix = spelled[self._tokens[start].startswith(SPACE):], False
        return self._utf8.decode(spelled)

    def end(self):
        return self._utf8.decode(b"", final=True)


def spell_piece(piece):
    byte = BYTE.fullmatch(piece)
    return bytes.fromhex(byte[1]) if byte else piece.replace(SPACE, " ").encode()


def byte_level_speller():
    """The vocabularies of GPT-2 and Llama 3 write a byte as a printable character: for 188 of them, their own."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(other)}
    return lambda token: bytes(alphabet[c] for c in token) if all(c in alphabet for c in token) else token.encode()


def from_json(parsed, path, legacy):
    """A parsed tokenizer.json -> (first, rest, prefix, legacy), as Tokenizer takes them; legacy None: the file's."""
    try:
        first = tokenizers.Tokenizer.from_str(json.dumps({**parsed, "padding": None, "truncation": None}))
    except Exception as error:  # the package raises no narrower class
        raise ValueError(f"{path} is not a tokenizer ({error}); download it again") from None
    prefixing = []  # one entry for each step that writes the prefix: True if it does so in every segment

    def without_prefix(step):
        """A step of the pipeline, or None, with the prefix taken out of it."""
        if not step:
            return step
        for inner in ("normalizers", "pretokenizers"):
            if inner in step:
                return {**step, inner: [s for s in map(without_prefix, step[inner]) if s]}
        if step["type"] == "Prepend":
            prefixing.append(True)
            return None
        if step["type"] == "Metaspace" and step["prepend_scheme"] != "never":
            prefixing.append(step["prepend_scheme"] == "always")
            return {**step, "prepend_scheme": "never"}
        return step

    now = json.loads(rebuild(first, first.normalizer, first.pre_tokenizer, empty=True).to_str())  # in today's spelling
    steps = {name: without_prefix(now[name]) for name in ("normalizer", "pre_tokenizer")}
    rest = tokenizers.Tokenizer.from_str(json.dumps({**now, **steps}))
    rest = rebuild(first, rest.normalizer, rest.pre_tokenizer)
    return first, rest, bool(prefixing), all(prefixing) if legacy is None else legacy

# Bytes that are no UTF-8 become one U+FFFD each, as in SentencePiece ("replace" writes one for several).
codecs.register_error("one_mark_per_byte", lambda error: ("\ufffd" * (error.end - error.start), error.end))
