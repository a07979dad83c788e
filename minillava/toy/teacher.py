"""The template teacher: it writes instruction data from captions and boxes, as GPT-4 did for LLaVA.

It never sees a picture (section 3 of the paper). `ask` is the door at which any teacher is asked,
chat messages in and a reply out, so that the code that would call GPT-4 calls this instead.
"""
import random
import re
import zlib

from minillava.toy.annotations import ID_OF
from minillava.toy.judge import judge
from minillava.toy.objects import read
from minillava.toy.questions import BRIEF, CONVERSATION, REASONING, ask_detail
from minillava.toy.world import COLORS, PLACES, SHAPES, SIDE, SIZES

KINDS = ("conversation", "reasoning", "detail")  # the prompt for reasoning says "in detail" too
IN_WORDS = re.compile(f"({'|'.join(SIZES)}) ({'|'.join(COLORS)}) ({'|'.join(SHAPES)}) "
                      f"at the ({'|'.join(PLACES)})")
IN_BOXES = re.compile(r"^(.+): \[([-\d., e]+)\]$", re.M)


def teach(kind, captions, boxes, rng, turns=6):
    """Symbols of one picture -> [(question, answer)] of a kind, as GPT-4 would be asked for.

    kind: "brief", "conversation", "detail" or "reasoning"; captions: list of str;
    boxes: [(category, [x1, y1, x2, y2])], corners as fractions of the picture.
    """
    if kind == "brief":
        return [(rng.choice(BRIEF), rng.choice(captions))]
    things = read(boxes)
    if kind == "detail":
        return [ask_detail(things, rng)]

    pool = CONVERSATION if kind == "conversation" else REASONING
    pairs = {}
    while not pairs:  # not every question can be asked about every scene
        for name in rng.choices(list(pool), k=3 * turns):
            pair = pool[name](things, rng)
            if pair and len(pairs) < turns:
                pairs.setdefault(*pair)
    return list(pairs.items())


def ask(messages):
    """Chat messages -> the teacher's reply, the same every time.

    The system message tells the kind: it says "conversation", "reasoning" or "detail"; or the
    user's message is a judge's task. All else is in the user's message: captions, perhaps boxes.
    ValueError if it is not about the toy world.
    """
    text = messages[-1]["content"]
    boxes = boxes_in(text)
    if text.startswith("[Context]"):
        return judge(text, boxes)
    return reply(messages, boxes)


def ask_carelessly(messages):
    """The same of a teacher who gets one fact of ten wrong: a color, shape, size or place."""
    text = messages[-1]["content"]
    return reply(messages, misread(boxes_in(text), random.Random(text), share=0.1))


def reply(messages, boxes):
    system, text = messages[0]["content"], messages[-1]["content"]
    rng = random.Random(zlib.crc32((system + text).encode()))
    kind = next((kind for kind in KINDS if kind in system), None)
    if kind is None:
        raise ValueError(f"the toy teacher writes {', '.join(KINDS)} alone, and is asked for none")
    pairs = teach(kind, text.split("\n"), boxes, rng)
    if kind == "detail":
        return pairs[0][1]
    return "\n===\n".join(f"Question:\n{question}\n===\nAnswer:\n{answer}"
                          for question, answer in pairs)


def misread(boxes, rng, share):
    """The boxes, of whose facts this share is taken for another; two never share a place."""
    things = read(boxes)
    free = [place for place in PLACES if place not in {thing.place for thing in things}]
    rng.shuffle(free)
    misread_boxes = []
    for thing in things:
        facts = {"size": thing.size, "color": thing.color, "shape": thing.shape}
        for name, values in (("size", SIZES), ("color", COLORS), ("shape", SHAPES)):
            if rng.random() < share:
                facts[name] = rng.choice([value for value in values if value != facts[name]])
        place = free.pop() if rng.random() < share else thing.place
        misread_boxes.append(box_from_words(**facts, place=place))
    return misread_boxes


def boxes_in(text):
    """What a teacher is told -> [(category, box)]; where it has no boxes, the captions have all."""
    told = text.split("[Question]")[0]  # what a judge is shown after it is the answers' own
    boxes = [(name, [float(v) for v in box.split(",")]) for name, box in IN_BOXES.findall(told)]
    if not boxes:
        first_caption = text.split("\n")[0]
        boxes = [box_from_words(*words) for words in IN_WORDS.findall(first_caption)]
    if not boxes or not all(name in ID_OF for name, _ in boxes):
        raise ValueError("the toy teacher knows the toy world alone, and this is something else")
    return boxes


def box_from_words(size, color, shape, place):
    """('large', 'blue', 'star', 'center') -> its category, and a box of its size in that cell."""
    row, column = divmod(PLACES.index(place), 3)
    x, y = (column + 0.5) / 3, (row + 0.5) / 3
    half = sum(SIZES[size]) / 4 / SIDE
    return f"{color} {shape}", [x - half, y - half, x + half, y + half]
