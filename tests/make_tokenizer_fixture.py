"""Writes tests/fixtures/tokenizer: a tiny SentencePiece model with LLaMA's settings, and SentencePiece's ids of texts.

Run in any environment with the package sentencepiece (0.2.3 made what is committed), which the project does not need:
    python tests/make_tokenizer_fixture.py
"""
import json
import random
import struct
from pathlib import Path

import sentencepiece

OUT = Path(__file__).parent / "fixtures" / "tokenizer"

SENTENCES = """
A chat between a curious user and an artificial intelligence assistant.
The assistant gives helpful, detailed, and polite answers to the human's questions.
The assistant is able to understand the visual content that the user provides.
USER: What is in the picture? ASSISTANT: A cat sits on a red mat.
USER: What colour is the ball? ASSISTANT: The ball is blue, and it lies left of the box.
### Human: How many squares are there? ### Assistant: There are three squares.
def area(w, h):    return w * h        # 12 times 34 is 408, 0000 and 1111
Der Hund schläft. Où est le café? La niña come piñas. Привет, мир! Кошка сидит на ковре.
你好，世界。猫坐在垫子上。こんにちは。 안녕하세요. مرحبا بالعالم नमस्ते
abab abaab aba ababa baba aabb aaaa bbbb abababab aabaab
""".strip().splitlines()

LITERALS = ["</s>", "<s>", "<unk>", "<image>", "<0x0A>", "▁", "▁▁", "\n", "\t", "\r\n", "  ", "     ", "###", "\0",
            "\u3000", "\u200b", "👩‍👩‍👧‍👦", "🇬🇧", "👍🏽", "🤖", "猫", "é", "e\u0301", "ﬁ", "שלום", "ไทย", "𝔘", "ab",
            "aba", "ba", "a", "b", "00"]


def train():
    settings = dict(vocab_size=560, model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
                    remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, split_digits=True,
                    hard_vocab_limit=False, character_coverage=0.98, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
                    model_prefix=str(OUT / "tokenizer"), minloglevel=2)
    # spaces in runs, so that pieces of several ▁ are learned
    text = SENTENCES * 4 + [" " * n + "x" for n in range(2, 20)] * 12
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(text), **settings)
    (OUT / "tokenizer.vocab").unlink()
    # LLaMA's runs of spaces all have the score -1e9: the same here, written over the score in the file
    path = OUT / "tokenizer.model"
    blob, runs = path.read_bytes(), 0
    for n in range(1, 33):
        piece = ("▁" * n).encode()
        at = blob.find(b"\x0a" + bytes([len(piece)]) + piece + b"\x15")
        if at >= 0:
            at, runs = at + len(piece) + 3, runs + 1
            blob = blob[:at] + struct.pack("<f", -1e9) + blob[at + 4:]
    path.write_bytes(blob)
    return runs


def texts(rng):
    words = " ".join(SENTENCES).split(" ")
    yield from ["", " ", "  ", "a", " a", "  a", "x  hello", "x   hello", *LITERALS]
    yield from (" " * n + "a" for n in (4, 15, 16, 17, 20, 37))
    for _ in range(250):
        text = rng.choice(("", "", " ", "   "))
        for _ in range(rng.randrange(1, 9)):
            text += rng.choice(rng.choice((words, LITERALS))) + rng.choice(("", " ", " ", "  ", "\n"))
        yield text
    for _ in range(60):
        yield "".join(rng.choice("ab") for _ in range(rng.randrange(1, 30)))


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    runs = train()
    rng = random.Random(0)
    model = sentencepiece.SentencePieceProcessor(model_file=str(OUT / "tokenizer.model"))
    newline = model.encode("\n")  # ▁ and a byte piece, which merges with nothing: what follows it has no dummy prefix
    assert len(newline) == 2
    size = model.vocab_size()
    spelled = [i for i in range(size) if not model.is_control(i) and not model.is_unknown(i)]
    bytes_ = range(3, 259)
    random_ids = [[rng.choice(rng.choice((spelled, bytes_))) for _ in range(rng.randrange(1, 12))] for _ in range(200)]
    cases = list(texts(rng))
    expected = {"vocab_size": size, "texts": cases, "ids": [model.encode(text) for text in cases],
                "ids_without_prefix": [model.encode("\n" + text)[2:] for text in cases],
                "random_ids": random_ids, "decoded": [model.decode(ids) for ids in random_ids]}
    (OUT / "sentencepiece.json").write_text(json.dumps(expected))
    print(f"{size} pieces, {runs} of them runs of spaces; {len(cases)} texts")


if __name__ == "__main__":
    main()
