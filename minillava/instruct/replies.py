"""What the teacher is told to write, and how its replies are read."""
import re
from functools import lru_cache
from pathlib import Path

PROMPTS = Path(__file__).parent / "prompts"
SEPARATOR = re.compile(r"^[ \t]*===+[ \t]*$", re.M)
BOX = re.compile(r"\[\s*[\d.]+(\s*,\s*[\d.]+){3}\s*\]")


@lru_cache
def instructions(kind):
    """The system message and the examples of prompts/KIND, as chat messages."""
    folder = PROMPTS / kind
    messages = [{"role": "system", "content": read_prompt(folder / "system_message.txt")}]
    for told in sorted(folder.glob("*_caps.txt")):
        written = told.with_name(told.name.replace("caps", "conv"))
        messages.append({"role": "user", "content": read_prompt(told)})
        messages.append({"role": "assistant", "content": read_prompt(written)})
    return messages


def read_prompt(path):
    return path.read_text(encoding="utf-8").strip()


@lru_cache
def question_list(kind):
    """The questions of a kind for which the teacher writes none: "brief" or "detail"."""
    return (PROMPTS / kind / "questions.txt").read_text(encoding="utf-8").splitlines()


def parse_reply(kind, reply):
    """The teacher's reply -> [(question, answer)], or [(None, answer)] for detail.

        Question:
        What is the cat doing?
        ===
        Answer:
        It sleeps.

    ValueError says what is wrong with it.
    """
    blocks = [block.strip() for block in SEPARATOR.split(reply)]
    if kind == "detail":
        if len(blocks) > 1 or re.match(r"(question|answer):", blocks[0], re.I):
            raise ValueError("a description was asked for, and this has questions and answers")
        check_texts(blocks)
        return [(None, blocks[0])]

    texts = [without_heading(block, number) for number, block in enumerate(blocks)]
    if len(texts) % 2:
        raise ValueError("the last question has no answer")
    check_texts(texts)
    return list(zip(texts[::2], texts[1::2]))


def without_heading(block, number):
    """Questions and answers take turns; each says which it is."""
    heading = ("Question", "Answer")[number % 2]
    match = re.fullmatch(rf"{heading}:(.*)", block, re.S | re.I)
    if not match:
        raise ValueError(f"block {number + 1} does not begin with {heading}:")
    return match[1].strip()


def check_texts(texts):
    """ValueError unless a model may learn from these texts."""
    if not all(texts):
        raise ValueError("a question or an answer is empty")
    if any("<image>" in text for text in texts):
        raise ValueError("<image> stands in a text")
    if any(BOX.search(text) for text in texts):
        raise ValueError("the numbers of a box are quoted")
    last = texts[-1][-1]
    if last.isalnum() or last in ",;-":
        raise ValueError("it ends in the middle of a sentence")
