"""What the teacher is told, and how its replies are read."""
import re
from functools import lru_cache
from pathlib import Path

PROMPTS = Path(__file__).parent / "prompts"


@lru_cache
def instructions(kind):
    """The system message and the examples of prompts/KIND, as chat messages."""
    read = lambda path: path.read_text(encoding="utf-8").strip()
    messages = [{"role": "system", "content": read(PROMPTS / kind / "system_message.txt")}]
    for symbols in sorted((PROMPTS / kind).glob("*_caps.txt")):
        reply = symbols.with_name(symbols.name.replace("caps", "conv"))
        messages += [{"role": "user", "content": read(symbols)}, {"role": "assistant", "content": read(reply)}]
    return messages


@lru_cache
def questions_of(kind):
    return (PROMPTS / kind / "questions.txt").read_text(encoding="utf-8").splitlines()


def parse(kind, reply):
    """The teacher's reply -> [(question, answer)], or [(None, answer)] for detail; ValueError says what is wrong."""
    blocks = [block.strip() for block in re.split(r"^[ \t]*===+[ \t]*$", reply, flags=re.M)]
    if kind == "detail":
        if len(blocks) > 1 or re.match(r"(question|answer):", blocks[0], re.I):
            raise ValueError("a description was asked for, and this has questions and answers")
        texts = blocks
    else:
        texts = []
        for i, block in enumerate(blocks):
            head = ("Question", "Answer")[i % 2]
            match = re.fullmatch(rf"{head}:(.*)", block, re.S | re.I)
            if not match:
                raise ValueError(f"block {i + 1} does not begin with {head}:")
            texts.append(match[1].strip())
        if len(texts) % 2:
            raise ValueError("the last question has no answer")
    if not all(texts):
        raise ValueError("a question or an answer is empty")
    if any("<image>" in text for text in texts):
        raise ValueError("<image> stands in a text")
    if any(re.search(r"\[\s*[\d.]+(\s*,\s*[\d.]+){3}\s*\]", text) for text in texts):
        raise ValueError("the numbers of a box are quoted")
    if texts[-1][-1].isalnum() or texts[-1][-1] in ",;-":
        raise ValueError("it ends in the middle of a sentence")
    return [(None, texts[0])] if kind == "detail" else list(zip(texts[::2], texts[1::2]))
