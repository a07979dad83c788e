"""Text <-> ids, over LLaMA's SentencePiece `tokenizer.model` or a Hugging Face `tokenizer.json`.

    "A cat.</s>"   ->   1     319   6635   21106   29879   29958
                        <s>   ▁A    ▁cat   .</     s       >

Two rules hold everywhere. Text is only text: `</s>`, `<s>` or `<image>` typed by somebody become
ordinary characters, as above; a control token enters the ids as an id, put there by
conversation.py. And a text is encoded in segments, the stretches between control tokens: LLaMA
begins a segment with a space that nobody wrote, the dummy prefix `▁`, or does not.

`legacy` (in tokenizer_config.json; true for a tokenizer.model without it) says which segments
have the prefix: all of them, as in Vicuna v0 to v1.3, or only the first one of a text, as in
Vicuna v1.5.
"""
import codecs
import json
import re
from pathlib import Path

from tokenizers import AddedToken

from minillava.files import read_json
from minillava.sentencepiece import SPACE
from minillava.tokenizer_json import (FILES, byte_level_alphabet, from_json, read_added_tokens,
                                      read_pipelines)

# A piece that is one byte of a character without a piece of its own.
BYTE = re.compile("<0x([0-9A-F]{2})>")

# Bytes that are no UTF-8 become one U+FFFD each, as in SentencePiece.
# ("replace" writes one for several.)
codecs.register_error("one_mark_per_byte",
                      lambda error: ("\ufffd" * (error.end - error.start), error.end))


class Tokenizer:
    """Attributes: `bos_id, eos_id, unk_id, pad_id` (the last two may be None), `legacy`,
    `vocab_size` (the highest id + 1), `use_im_start_end`: False where a model's config says no."""

    def __init__(self, pipelines, config, model=None):
        """config and model: what tokenizer_config.json and tokenizer.model hold."""
        # Two ways from text to ids, which differ in the dummy prefix alone.
        self._with_prefix = pipelines.with_prefix
        self._without_prefix = pipelines.without_prefix
        self._has_prefix = pipelines.has_prefix
        self.legacy = pipelines.legacy
        self.use_im_start_end = True

        # Kept as they came, for save().
        self._config = config
        self._model = model

        self._keep_control_tokens_text()
        self._look_up()

    @classmethod
    def load(cls, folder):
        """The tokenizer of a model folder; OSError if it has none, ValueError if none is whole."""
        folder = Path(folder)
        config = read_json(folder / "tokenizer_config.json")
        pipelines, model = read_pipelines(folder, config.get("legacy"))
        tokenizer = cls(pipelines, config, model)

        # <image>, <pad> and their like, which come after the vocabulary.
        for i, token in sorted(read_added_tokens(folder, config).items()):
            if tokenizer.add(token) != i:
                raise ValueError(f"{folder}: added token {str(token)!r} should have id {i}, "
                                 f"but {tokenizer._ids[str(token)]} is next")
        return tokenizer

    def encode(self, text):
        """A string -> list of ids, BOS first."""
        return [self.bos_id, *self.segment(text)]

    def segment(self, text, prefix=True):
        """Ids of one stretch of text, without BOS; prefix=False leaves out the dummy prefix."""
        # Not even a prefix stands before nothing.
        if not text:
            return []
        pipeline = self._with_prefix if prefix else self._without_prefix
        try:
            return pipeline.encode(text, add_special_tokens=False).ids
        except TypeError:
            raise ValueError(f"{text!r:.80} is not a string of Unicode characters: "
                             "it came from text that is not UTF-8, or was cut") from None

    def decode(self, ids):
        """A list of ids -> their text; control and image tokens and unknown ids spell nothing."""
        streamer = Streamer(self)
        return streamer.put(*ids) + streamer.end()

    def spell(self, ids):
        """As decode(), with nothing hidden: <s>, </s>, the dummy prefix, <id> for no token."""
        spelled = []
        for i in ids:
            name = self._tokens.get(i, f"<{i}>")
            spelled.append(self._bytes.get(i) or name.encode())
        return b"".join(spelled).decode("utf-8", "one_mark_per_byte")

    def pieces(self, text):
        """One stretch of text, cut as its ids are and in the letters of tokenizer.json."""
        return [self._tokens[i] for i in self.segment(text, prefix=False)]

    def add(self, token):
        """Gives a token such as <image> the next free id, if it has none yet -> its id."""
        if str(token) not in self._ids:
            # A name alone is a control token's; an AddedToken says what it is.
            if isinstance(token, str):
                token = AddedToken(token, special=True, normalized=False)
            # Both pipelines know the same tokens, and the tables know them too.
            self._with_prefix.add_tokens([token])
            self._without_prefix.add_tokens([token])
            self._look_up()
        return self._ids[str(token)]

    def save(self, folder):
        """Writes tokenizer.json, tokenizer_config.json and tokenizer.model, for transformers too.

        Files of a tokenizer that was there before are removed: they would be read in place of ours.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for file in FILES:
            (folder / file).unlink(missing_ok=True)

        self._with_prefix.save(str(folder / "tokenizer.json"), pretty=False)
        # `tokenizer.model` goes along as it came, for programs that read no other file.
        if self._model:
            (folder / "tokenizer.model").write_bytes(self._model)
        text = json.dumps(self._saved_config(), ensure_ascii=False, indent=2)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")

    def as_json(self):
        """What save() writes as tokenizer.json, parsed."""
        return json.loads(self._with_prefix.to_str())

    def changed(self, parsed):
        """-> a Tokenizer like this one, of another tokenizer.json."""
        pipelines = from_json(parsed, "the changed tokenizer", self.legacy)
        tokenizer = Tokenizer(pipelines, self._config)
        tokenizer.use_im_start_end = self.use_im_start_end
        return tokenizer

    def _saved_config(self):
        config = dict(self._config)

        # The special tokens by name, also where the folder left them to be guessed.
        ids = {"bos": self.bos_id, "eos": self.eos_id, "unk": self.unk_id, "pad": self.pad_id}
        for name, i in ids.items():
            if i is not None:
                config[f"{name}_token"] = self._tokens[i]

        # Transformers: this class runs tokenizer.json as it is, LlamaTokenizer of version 5 would
        # build another pipeline.
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config["clean_up_tokenization_spaces"] = False
        config["legacy"] = self.legacy
        return config

    def _look_up(self):
        """The tables: ids by token, tokens by id, the bytes an id spells, and the special ids."""
        self._ids = self._with_prefix.get_vocab(with_added_tokens=True)
        self._tokens = {i: token for token, i in self._ids.items()}
        self.vocab_size = max(self._tokens) + 1
        self._bytes = self._spelled_bytes()

        # BOS opens every conversation, EOS ends every answer.
        self.bos_id = self._special_id("bos_token", "<s>")
        self.eos_id = self._special_id("eos_token", "</s>")
        self.unk_id = self._special_id("unk_token", "<unk>")
        self.pad_id = self._special_id("pad_token", "<pad>")
        # LLaMA has no token for padding; LLaVA pads with <unk>.
        if self.pad_id is None:
            self.pad_id = self.unk_id
        if self.bos_id is None or self.eos_id is None:
            raise ValueError("the tokenizer has no <s> or </s>; name bos_token and eos_token "
                             "in tokenizer_config.json")

    @property
    def image_ends(self):
        """The ids that LLaVA v0 and v1.1 put around an image, or None."""
        ends = self._ids.get("<im_start>"), self._ids.get("<im_end>")
        return ends if self.use_im_start_end and None not in ends else None

    def _special_id(self, name, default):
        """The id of the token that the config names, as a string or as {"content": string}."""
        # Old LLaMA folders have "" here.
        token = self._config.get(name) or default
        if isinstance(token, dict):
            token = token.get("content")
        return self._ids.get(str(token))

    def _spelled_bytes(self):
        """{id: bytes of text}; a control token spells nothing."""
        added = self._with_prefix.get_added_tokens_decoder()

        # Llama 3 writes bytes as letters, LLaMA writes text, and <0xE7> for a byte without a piece.
        writes_letters = "ByteLevel" in repr(self._with_prefix.decoder)
        alphabet = byte_level_alphabet() if writes_letters else {}

        spelled = {}
        for i, token in self._tokens.items():
            byte = BYTE.fullmatch(token)
            if i in added and added[i].special and not byte:
                spelled[i] = b""
            elif alphabet and all(c in alphabet for c in token):
                spelled[i] = bytes(alphabet[c] for c in token)
            elif alphabet:
                spelled[i] = token.encode()
            elif byte:
                spelled[i] = bytes.fromhex(byte[1])
            else:
                spelled[i] = token.replace(SPACE, " ").encode()
        return spelled

    def _keep_control_tokens_text(self):
        """`</s>` in a text is encoded letter by letter, as any other text, never as the token."""
        self._with_prefix.encode_special_tokens = True
        self._without_prefix.encode_special_tokens = True

    def __setstate__(self, state):
        """Pickled, as for a data loader's worker, the two lose their switch: it is set again."""
        self.__dict__.update(state)
        self._keep_control_tokens_text()


class Streamer:
    """Ids in, text out, never half a UTF-8 character: `put` gives what is certain, `end` the rest.

    Of ids that spell E7 8C | AB, the first gives "" and the second 猫.
    """

    def __init__(self, tokenizer):
        self._tokens = tokenizer._tokens
        self._bytes = tokenizer._bytes
        self._prefix_to_come = tokenizer._has_prefix
        self._utf8 = codecs.getincrementaldecoder("utf-8")("one_mark_per_byte")

    def put(self, *ids):
        spelled = []
        for i in ids:
            # An element of a tensor would not be found.
            i = int(i)
            piece = self._bytes.get(i, b"")

            # Nobody wrote the space with which the text begins.
            if piece and self._prefix_to_come:
                self._prefix_to_come = False
                if self._tokens[i].startswith(SPACE):
                    piece = piece[1:]
            spelled.append(piece)
        # Half a character stays in the decoder until its other half comes.
        return self._utf8.decode(b"".join(spelled))

    def end(self):
        return self._utf8.decode(b"", final=True)
