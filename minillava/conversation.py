"""A dialogue becomes ids and labels, in one pass (section 4.2: equation 2 and table 2).

A question about an image of two tokens, and its answer, in the template of LLaVA-1.5 (the system
text is left out here; -200 is IMAGE_TOKEN, -100 IGNORE_INDEX):

    text    ▁US   ER    :      ▁      <image>     ▁      \\n    What  ...
    ids     3148  1001  29901  29871  -200  -200  29871  13    5618  ...
    labels  -100  -100  -100   -100   -100  -100  -100   -100  -100  ...

    text    ▁A    SS    IST   ANT    :      ▁A   ▁cat  .      </s>
    ids     319   1799  9047  13566  29901  319  6635  29889  2
    labels  -100  -100  -100  -100   -100   319  6635  29889  2

What is learned is the answer and the end token. A conversation is first written as pieces that
say of themselves whether they are learned; each run of text of one kind is then encoded by
itself, so that no boundary is ever searched for in the ids. The ids are still those of the whole
text encoded at once: in LLaMA's vocabulary a space only begins a piece, as in "▁A", so no token
holds both the colon and the A after it.
"""
from dataclasses import dataclass
from itertools import groupby

from minillava.llava import IGNORE_INDEX, IMAGE_TOKEN
from minillava.terminal import printable

IMAGE = "<image>"  # marks the image in a human turn


@dataclass(frozen=True)
class Template:
    style: str                # "two", "single" or "plain": the function that writes it, below
    system: str = ""
    human: str = ""           # the names of the roles
    gpt: str = ""
    image: tuple = ("", "")   # text before and after the image
    stop: str | None = None   # ends an answer, as the end token always does; not a part of it


HELPFUL_USER = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.")
HELPFUL_HUMAN = HELPFUL_USER.replace("user", "human")
SEES = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant is able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."  # sic: no space follows
    "The visual content will be provided with the following format: <Image>visual content</Image>.")
TAGS = ("<Image>", "</Image>")

TEMPLATES = {
    # What LLaVA-1.5, and LLaVA-1 of July 2023, were trained with,
    "vicuna_v1": Template("two", HELPFUL_USER, "USER", "ASSISTANT"),
    # and what their official demo asks with: "human" in place of "user".
    "llava_v1": Template("two", HELPFUL_HUMAN, "USER", "ASSISTANT"),
    # What a projector of their stage 1 is tried with.
    "v1_mmtag": Template("two", SEES, "USER", "ASSISTANT", image=TAGS),
    # The paper.
    "llava_v0": Template("single", HELPFUL_HUMAN, "Human", "Assistant", stop="###"),
    "v0_mmtag": Template("single", SEES, "Human", "Assistant", image=TAGS, stop="###"),
    # Stage 1: an image and its caption.
    "plain": Template("plain", stop="\n"),
}


def human_turn(text, image=False):
    """What a person typed -> the turn: no <image> but the one that an image puts in front."""
    # Again and again: "<ima<image>ge>" holds another one.
    while IMAGE in text:
        text = text.replace(IMAGE, "")
    if image:
        text = f"{IMAGE}\n{text.strip()}"
    return "human", text


def render(turns, tokenizer, template, image_tokens):
    """turns [("human", text), ("gpt", text), ...] -> (ids, labels), two lists of one length.

    template: a key of TEMPLATES; image_tokens: how often IMAGE_TOKEN stands for one <image>, or 0
    for a sample without image, where <image> is text. A last turn ("gpt", None) asks for an
    answer: the ids end where it begins, and nothing is learned. ValueError for what fits nowhere.
    """
    if template not in TEMPLATES:
        raise ValueError(f"there is no template {template!r}, only {', '.join(TEMPLATES)}")
    t = TEMPLATES[template]
    turns = checked(turns, t.style, image_tokens)
    is_prompt = turns[-1][1] is None
    pieces = STYLES[t.style](turns, t, tokenizer, image_tokens)

    ids, labels = [tokenizer.bos_id], [IGNORE_INDEX]
    prefix = True
    for piece, learned in joined(pieces):
        if isinstance(piece, str):
            new = tokenizer.segment(piece, prefix)
            # The next text goes on where this one ends, with no dummy prefix between them.
            prefix = False
        else:
            # Control tokens are ids already.
            new = piece
            # Officially, the text after an image is tokenized by itself, so it has a prefix.
            prefix = tokenizer.legacy or piece[-1] == IMAGE_TOKEN
        ids += new
        # A label stands where its id does: the shift by one is the model's own (llava.py).
        labels += new if learned else [IGNORE_INDEX] * len(new)

    # A prompt may hold answers of earlier turns.
    if is_prompt:
        labels = [IGNORE_INDEX] * len(ids)
    return ids, labels


def joined(pieces):
    """Pieces (text or [ids], learned), with neighbouring texts of one kind put together.

    "USER: ", "What" -> "USER: What": tokens must not break where two pieces happen to meet.
    """
    def kind(piece):
        return isinstance(piece[0], str), piece[1]

    for (is_text, learned), run in groupby(pieces, key=kind):
        # Ids stay as they are.
        if is_text:
            yield "".join(text for text, _ in run), learned
        else:
            yield from run


# ------------------------------------------------------------------------------------------------
# One function a style: what stands between the turns. Each yields pieces, text or [ids], and
# whether they are learned.

def two(turns, t, tokenizer, image_tokens):
    """{system} USER: {question} ASSISTANT: {answer}</s>USER: {question} ASSISTANT: {answer}</s>

    Two separators: a space ends the question, the end token the answer. Sic: no space after that.
    """
    yield t.system + " ", False
    for role, text in turns:
        if role == "human":
            yield f"{t.human}: ", False
            yield from message(text, t, tokenizer, image_tokens)
        else:
            yield f" {t.gpt}:", False
            # The space belongs to the answer: "▁A" is one token.
            if text:
                yield " " + text, True
            # None is the answer to come; an empty one is an answer too, and ends.
            if text is not None:
                yield [tokenizer.eos_id], True


def single(turns, t, tokenizer, image_tokens):
    """One separator, ###, all of which are learned: the model ends its answer with one.

    Training text has spaces and newlines that a prompt has not. Officially so, and thus here.
    """
    if turns[-1][1] is None:
        yield from single_prompt(turns, t, tokenizer, image_tokens)
        return

    yield t.system + "\n\n", False
    for role, text in turns:
        yield "###", True
        # Officially, the name of the role is learned too: "### Assistant:".
        if role == "human":
            yield f" {t.human}: ", False
            yield from message(text, t, tokenizer, image_tokens)
            yield "\n", False
        else:
            yield f" {t.gpt}: {text}\n", True
    # And so is the ### that would open another turn.
    yield "### ", True


def single_prompt(turns, t, tokenizer, image_tokens):
    """{system}###Human: {question}###Assistant: {answer}###Human: {question}###Assistant:"""
    yield t.system, False
    for role, text in turns:
        yield f"###{t.human if role == 'human' else t.gpt}:", False
        if text:
            yield " ", False
        if role == "human":
            yield from message(text, t, tokenizer, image_tokens)
        elif text:
            yield text, False


def plain(turns, t, tokenizer, image_tokens):
    """The image and its caption: no question, and a newline ends the caption, not the end token."""
    caption = turns[1][1]
    yield [IMAGE_TOKEN] * image_tokens, False
    if caption is not None:
        yield caption + "\n", True


STYLES = {"two": two, "single": single, "plain": plain}


def message(text, t, tokenizer, image_tokens):
    """A human text with its image in front, wherever and however often the data has <image>.

    (Equation 2 draws whether image or question comes first; the official code puts it in front.)
    """
    if not image_tokens or IMAGE not in text:
        yield text, False
        return

    # The image, with what some versions put around it: tokens in v0 and v1.1, tags in mmtag.
    image = [IMAGE_TOKEN] * image_tokens
    if tokenizer.image_ends:
        start, end = tokenizer.image_ends
        image = [start, *image, end]
    before, after = t.image
    yield before, False
    yield image, False
    yield after, False

    # The question under it.
    question = text.replace(IMAGE, "").strip()
    if question:
        yield "\n" + question, False


def checked(turns, style, image_tokens):
    """The turns, or a ValueError that says what is wrong with them."""
    # Each turn by itself.
    for n, (role, text) in enumerate(turns, 1):
        if role not in ("human", "gpt"):
            raise ValueError(f"turn {n} is from {role!r}; a turn is from 'human' or 'gpt'")
        asks = text is None and role == "gpt" and n == len(turns)
        if not isinstance(text, str) and not asks:
            raise ValueError(f"turn {n}, from {role}, is {text!r}, not text; "
                             "only a last gpt turn may be None")

    # An answer before the first question answers nothing: left out, as officially.
    if style == "two" and turns and turns[0][0] == "gpt":
        turns = turns[1:]

    # All turns together.
    roles = [role for role, _ in turns]
    if "gpt" not in roles:
        raise ValueError("the conversation has no answer to learn; add one, "
                         "or end with ('gpt', None) to ask for one")
    if style == "two":
        for role, following in zip(roles, roles[1:]):
            if role == following:
                raise ValueError(f"human and gpt must take turns, but {role} speaks twice in a "
                                 "row; join such turns into one")
    if style == "plain":
        if roles != ["human", "gpt"] or IMAGE not in turns[0][1] or not image_tokens:
            raise ValueError("template plain takes an image and its caption: "
                             "one human turn with <image>, one gpt turn")
    return turns


# ------------------------------------------------------------------------------------------------
# To look at what the model learns (train.py --check-data).

GREEN, CYAN, GREY, PLAIN = "\033[32m", "\033[36m", "\033[90m", "\033[0m"


def colored_by_loss(ids, labels, tokenizer, colors=True):
    """A rendered sample for a terminal: green is learned, grey is not, an image is [image x576].

    Where there are no colours, what is learned stands in brackets: [learned: A cat.</s>].
    """
    def kind(pair):
        i, label = pair
        return i == IMAGE_TOKEN, label != IGNORE_INDEX

    colored = []
    for (is_image, learned), run in groupby(zip(ids, labels), key=kind):
        run_ids = [i for i, _ in run]
        if is_image:
            color, text = CYAN, f"[image x{len(run_ids)}]"
        else:
            color = GREEN if learned else GREY
            # Text from outside: shown, not obeyed.
            text = printable(tokenizer.spell(run_ids).replace("\n", "↵\n"))
        if colors:
            text = f"{color}{text}{PLAIN}"
        elif learned:
            text = f"[learned: {text}]"
        colored.append(text)
    return "".join(colored)
