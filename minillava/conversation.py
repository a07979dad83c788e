"""A dialogue becomes ids and labels, in one pass (section 4.2, table 2 of the paper).

    <s>{system} USER: <image>\\n{question} ASSISTANT: {answer}</s>USER: {question} ASSISTANT: {answer}</s>
                                                     ^^^^^^^^^^^^                            ^^^^^^^^^^^^  gets the loss

A conversation is first written as pieces that say of themselves whether they are learned; each run of text of one kind
is then encoded by itself, so that no boundary is ever searched for in the ids. This gives the very ids of the whole
text, since a piece of LLaMA's vocabulary begins with a space or has none: no token reaches over ": answer".
"""
from dataclasses import dataclass
from itertools import groupby

from minillava.llava import IGNORE_INDEX, IMAGE_TOKEN

IMAGE = "<image>"  # marks the image in a human turn


@dataclass(frozen=True)
class Template:
    style: str                 # "two", "single" or "plain": how turns are told apart, see the functions of these names
    system: str = ""
    human: str = ""            # the names of the roles
    gpt: str = ""
    image: tuple = ("", "")    # text before and after the image
    stop: str | None = None    # this text ends an answer, as does the end token always: cut it off, and what follows it


def helpful(person):
    return (f"A chat between a curious {person} and an artificial intelligence assistant. "
            f"The assistant gives helpful, detailed, and polite answers to the {person}'s questions.")

SEES = ("A chat between a curious user and an artificial intelligence assistant. "
        "The assistant is able to understand the visual content that the user provides, "
        "and assist the user with a variety of tasks using natural language."  # sic: no space follows
        "The visual content will be provided with the following format: <Image>visual content</Image>.")
TAGS = ("<Image>", "</Image>")
TEMPLATES = {
    "vicuna_v1": Template("two", helpful("user"), "USER", "ASSISTANT"),                      # LLaVA-1.5
    "llava_v1": Template("two", helpful("human"), "USER", "ASSISTANT"),                      # LLaVA-1, July 2023
    "v1_mmtag": Template("two", SEES, "USER", "ASSISTANT", image=TAGS),
    "llava_v0": Template("single", helpful("human"), "Human", "Assistant", stop="###"),      # the paper
    "v0_mmtag": Template("single", SEES, "Human", "Assistant", image=TAGS, stop="###"),
    "plain": Template("plain", stop="\n"),                                                   # stage 1
}


def human_turn(text, image=False):
    """What a person typed -> the turn: any <image> in it is taken out, and with an image one is put in front."""
    while IMAGE in text:  # again and again: "<ima<image>ge>"
        text = text.replace(IMAGE, "")
    return "human", f"{IMAGE}\n{text.strip()}" if image else text


def render(turns, tokenizer, template, image_tokens):
    """turns [("human", text), ("gpt", text), ...] -> (ids, labels), two lists of one length, BOS first.

    template: a key of TEMPLATES. labels are the ids where the model is to learn, else IGNORE_INDEX. A last turn
    ("gpt", None) asks for an answer: the ids end where it begins, and all labels are IGNORE_INDEX.

    <image> in a human turn becomes `image_tokens` times IMAGE_TOKEN, and stands first in its turn, once, wherever and
    however often the data had it. With image_tokens=0, for a sample without image, it is text like any other. So it is
    in an answer, and so are <s>, </s> and <unk> everywhere: nobody can end a turn by typing it. (Role names and ### are
    text in these templates: a question that holds " ASSISTANT: " may look like two turns to the model, but it changes
    neither the labels nor where control tokens stand.)

    Ids and labels equal those of the official code on all samples that it trains on, but for typed control tokens and
    the empty answer. Other samples it masks whole, so that they teach nothing. Here
        " ASSISTANT: ", </s> or <unk> in a text    make no difference: what is learned is the answers
        a human turn at the end                    has no answer to learn; those before it are learned
        an empty answer                            is learned as such: the end token right after "ASSISTANT:"
    An answer before the first question is left out, as it is there (style "two"). ValueError: no answer at all, a role
    that is not human or gpt, a text that is not a string, two turns of one role in a row (style "two"), anything but
    one human turn with <image> and one gpt turn (style "plain").

    Style "two" only ever appends: the ids of a prompt, those of the answer and the end token begin the next prompt. In
    style "single" this holds up to the answer: the model ends it with "\\n###" as in training, the next prompt goes on
    with "###", which may merge with its last character. (And a model may spell its answer in other tokens than encode()
    does. So compare ids before using a cache again.)
    """
    if template not in TEMPLATES:
        raise ValueError(f"there is no template {template!r}, only {', '.join(TEMPLATES)}")
    t = TEMPLATES[template]
    turns = checked(turns, t.style, image_tokens)
    prompt = turns[-1][1] is None
    pieces = {"two": two, "single": single, "plain": plain}[t.style](turns, t, tokenizer, image_tokens)
    ids, labels, first = [tokenizer.bos_id], [IGNORE_INDEX], True
    for (is_text, learn), run in groupby(pieces, key=lambda pair: (isinstance(pair[0], str), pair[1])):
        run = [piece for piece, _ in run]
        if is_text:
            new = tokenizer.segment("".join(run), first)
            first = False
        else:
            new = [i for control in run for i in [control] * (image_tokens if control == IMAGE_TOKEN else 1)]
            first = tokenizer.legacy or run[-1] == IMAGE_TOKEN  # officially, text after an image is tokenised by itself
        ids += new
        labels += new if learn and not prompt else [IGNORE_INDEX] * len(new)
    return ids, labels


def checked(turns, style, image_tokens):
    """The turns, or a ValueError that says what is wrong with them."""
    for n, (role, text) in enumerate(turns, 1):
        if role not in ("human", "gpt"):
            raise ValueError(f"turn {n} is from {role!r}; a turn is from 'human' or 'gpt'")
        if not isinstance(text, str) and (text is not None or role != "gpt" or n < len(turns)):
            raise ValueError(f"turn {n}, from {role}, is {text!r}, not text; only a last gpt turn may be None")
    if style == "two" and turns and turns[0][0] == "gpt":
        turns = turns[1:]
    roles = [role for role, _ in turns]
    if "gpt" not in roles:
        raise ValueError("the conversation has no answer to learn; add one, or end with ('gpt', None) to ask for one")
    twice = next((a for a, b in zip(roles, roles[1:]) if a == b), None)
    if style == "two" and twice:
        raise ValueError(f"human and gpt must take turns, but {twice} speaks twice in a row; join such turns into one")
    if style == "plain" and not (roles == ["human", "gpt"] and IMAGE in turns[0][1] and image_tokens):
        raise ValueError("template plain takes an image and its caption: one human turn with <image>, one gpt turn")
    return turns


def two(turns, t, tokenizer, image_tokens):
    """Two separators: a space ends the question, the end token the answer. No space follows the end token: sic."""
    yield t.system + " ", False
    for role, text in turns:
        if role == "human":
            yield f"{t.human}: ", False
            yield from message(text, t, tokenizer, image_tokens)
        else:
            yield f" {t.gpt}:", False
            if text:
                yield " " + text, True
            if text is not None:
                yield tokenizer.eos_id, True


def single(turns, t, tokenizer, image_tokens):
    """One separator, ###. Training text, all its ### learned, has spaces and newlines that a prompt has not: sic."""
    prompt = turns[-1][1] is None
    space, newline = ("", "") if prompt else (" ", "\n")
    yield t.system + 2 * newline, False
    for role, text in turns:
        learn = role == "gpt" and not prompt
        yield "###", not prompt
        yield f"{space}{t.human if role == 'human' else t.gpt}:", learn
        if text or not prompt:
            yield " ", learn
        if role == "human":
            yield from message(text, t, tokenizer, image_tokens)
        elif text:
            yield text, learn
        yield newline, learn
    if not prompt:
        yield "### ", True


def plain(turns, t, tokenizer, image_tokens):
    """The image and its caption. The question is left out, and a newline ends the caption, not the end token."""
    yield IMAGE_TOKEN, False
    if turns[1][1] is not None:
        yield turns[1][1] + "\n", True


def message(text, t, tokenizer, image_tokens):
    """A human text, its image first, within <im_start> and <im_end> where the tokenizer has them (v0, v1.1)."""
    if image_tokens and IMAGE in text:
        before, after = t.image
        question = text.replace(IMAGE, "").strip()
        yield before, False
        if tokenizer.image_start_id is not None:
            yield tokenizer.image_start_id, False
        yield IMAGE_TOKEN, False
        if tokenizer.image_end_id is not None:
            yield tokenizer.image_end_id, False
        text = f"{after}\n{question}" if question else after
    yield text, False


def show(ids, labels, tokenizer):
    """A rendered sample for a terminal: green is learned, grey is not, and an image is [image x576]."""
    shown = []
    kinds = [(i == IMAGE_TOKEN, label != IGNORE_INDEX) for i, label in zip(ids, labels)]
    for (image, learn), run in groupby(zip(kinds, ids), key=lambda pair: pair[0]):
        run = [i for _, i in run]
        text = f"[image x{len(run)}]" if image else tokenizer.spell(run).replace("\n", "↵\n")
        shown.append(f"\033[{36 if image else 32 if learn else 90}m{text}\033[0m")
    return "".join(shown)
