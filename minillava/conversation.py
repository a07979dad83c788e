"""A dialogue becomes ids and labels, in one pass (section 4.2, table 2 of the paper).

    <s>{system} USER: <image>\\n{question} ASSISTANT: {answer}</s>USER: {question} ASSISTANT: {answer}</s>
                                                     ^^^^^^^^^^^^                            ^^^^^^^^^^^^  gets the loss
"""
import re
from dataclasses import dataclass

from minillava.model import IGNORE_INDEX, IMAGE_TOKEN

IMAGE = "<image>"


@dataclass(frozen=True)
class Template:
    style: str              # "two": each answer ends in </s>; "single": turns begin with ###; "plain": an image and its caption
    system: str = ""
    human: str = ""
    gpt: str = ""
    image: str = IMAGE      # what stands for the image in the text
    stop: str | None = None  # ends an answer, beside </s>


def polite(who):
    return (f"A chat between a curious {who} and an artificial intelligence assistant. "
            f"The assistant gives helpful, detailed, and polite answers to the {who}'s questions.")


TEMPLATES = {
    "vicuna_v1": Template("two", polite("user"), "USER", "ASSISTANT"),
    "plain": Template("plain", stop="\n"),
}


def render(turns, tokenizer, template, image_tokens):
    """turns [("human", text), ("gpt", text or None), ...] -> (ids, labels), two lists of equal length."""
    t = TEMPLATES[template]
    out = Builder(tokenizer, image_tokens)
    if t.style == "plain":
        out.image()
        if turns[1][1] is not None:
            out.text(turns[1][1] + "\n", learn=True)
        return out.done()
    out.text(t.system)
    gap = " "
    for role, text in turns:
        if role == "human":
            out.text(f"{gap}{t.human}: ")
            out.human(text, t)
        else:
            out.text(f" {t.gpt}:")
            if text is not None:
                out.text(" " + text, learn=True)
                out.end(learn=True)
            gap = ""
    ids, labels = out.done()
    return ids, labels if turns[-1][1] is not None else [IGNORE_INDEX] * len(ids)


class Builder:
    """Ids and labels side by side. Text of one kind is gathered, and encoded where a control token or the other kind begins."""

    def __init__(self, tokenizer, image_tokens):
        self.tokenizer, self.image_tokens = tokenizer, image_tokens
        self.ids, self.labels = [tokenizer.bos_id], [IGNORE_INDEX]
        self.held, self.learn, self.prefix = "", False, True

    def text(self, text, learn=False):
        if learn != self.learn:
            self.flush()
        self.held, self.learn = self.held + text, learn

    def flush(self):
        if self.held:
            self.add(self.tokenizer.segment(self.held, self.prefix), self.learn)
            self.held, self.prefix = "", False

    def add(self, ids, learn):
        self.ids += ids
        self.labels += ids if learn else [IGNORE_INDEX] * len(ids)

    def human(self, text, template):
        """The image always stands first in its message, wherever the data had it."""
        if IMAGE in text:
            text = f"{IMAGE}\n{text.replace(IMAGE, '').strip()}".strip()
            text = text.replace(IMAGE, template.image)
            before, text = text.split(IMAGE)
            self.text(before)
            self.image()
        self.text(text)

    def image(self):
        self.flush()
        self.add([IMAGE_TOKEN] * self.image_tokens, False)
        self.prefix = True

    def end(self, learn):
        self.flush()
        self.add([self.tokenizer.eos_id], learn)
        self.prefix = self.tokenizer.legacy

    def done(self):
        self.flush()
        return self.ids, self.labels
