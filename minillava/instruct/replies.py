"""What the teacher is told to write, and how its replies are read."""
import re
from functools import lru_cache
from pathlib import Path

PROMPTS = Path(__file__).parent / "prompts"
SEPARATOR = re.compile(r"^[ \t]*===+[ \t]*$", re.M)
HEADING = re.compile(r"[*_#\s]*(question|answer)[*_]*:[*_]*", re.I)
BOX = re.compile(r"\[\s*[\d.]+(\s*,\s*[\d.]+){3}\s*\]")
REFUSALS = ("i'm sorry", "i am sorry", "sorry, ", "i apologize", "my apologies", "as an ai",
            "i'm unable to", "i am unable to", "i'm not able to", "i am not able to",
            "i can't see", "i cannot see", "i can't view", "i cannot view",
            "i can't assist", "i cannot assist", "i can't help", "i cannot help",
            "i can't provide", "i cannot provide")


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
    blocks = [block.strip() for block in SEPARATOR.split(without_fence(reply))]
    if kind == "detail":
        if len(blocks) > 1 or HEADING.match(blocks[0]):
            raise ValueError("a description was asked for, and this has questions and answers")
        check_texts(blocks)
        return [(None, blocks[0])]

    texts = [without_heading(block, number) for number, block in enumerate(blocks)]
    if len(texts) % 2:
        raise ValueError("the last question has no answer")
    check_texts(texts)
    return list(zip(texts[::2], texts[1::2]))


def without_fence(reply):
    """Lines end alike, and a reply that is one ``` block of Markdown is what it holds."""
    reply = "\n".join(reply.splitlines()).strip()
    fenced = re.fullmatch(r"```\w*\n(.*)\n```", reply, re.S)
    return fenced[1] if fenced else reply


def without_heading(block, number):
    """Questions and answers take turns; each says which it is, "**Question:**" too."""
    wanted = ("Question", "Answer")[number % 2]
    heading = HEADING.match(block)
    if not heading or heading[1].lower() != wanted.lower():
        raise ValueError(f"block {number + 1} does not begin with {wanted}:")
    return block[heading.end():].strip()


def check_texts(texts):
    """ValueError unless a model may learn from these texts."""
    flaws = {
        "a question or an answer is empty": not all(texts),
        "<image> stands in a text": any("<image>" in text for text in texts),
        "the numbers of a box are quoted": any(map(BOX.search, texts)),
        "a character is broken": any("\ufffd" in text for text in texts),
        "it is a refusal": any(map(is_refusal, texts)),
        "it ends in the middle of a sentence": re.search(r"[^\W_]$|[,;-]$", texts[-1]),
    }
    for flaw, is_there in flaws.items():
        if is_there:
            raise ValueError(flaw)


def is_refusal(text):
    opening = text.lower().replace("\u2019", "'").lstrip("*_\"' ")
    return opening.startswith(REFUSALS)
