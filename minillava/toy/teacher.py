"""The template teacher, behind the door at which GPT-4 is asked."""
import random
import re
import zlib

from minillava.toy.objects import read
from minillava.toy.questions import BRIEF, CONVERSATION, DETAIL, QUESTIONS, REASONING, _asks_detail
from minillava.toy.world import COLORS, NUMBERS, PLACES, SHAPES, SIDE, SIZES


def teach(kind, captions, boxes, rng, turns=6):
    """The template teacher: symbols of one picture -> [(question, answer)] of a kind, as GPT-4 would be asked for.

    kind: "brief", "conversation", "detail" or "reasoning"; captions: list of str; boxes: [(category, [x1, y1, x2, y2])],
    corners as fractions of the picture. Answers are whole sentences that follow from captions and boxes alone.
    """
    if kind == "brief":
        return [(rng.choice(BRIEF), rng.choice(captions))]
    things = read(boxes)
    if kind == "detail":
        return [_asks_detail(things, rng)]
    pool, pairs = CONVERSATION if kind == "conversation" else REASONING, {}
    while not pairs:  # not every question can be asked about every scene
        for name in rng.choices(list(pool), k=3 * turns):
            pair = pool[name](things, rng)
            if pair and len(pairs) < turns:
                pairs.setdefault(*pair)
    return list(pairs.items())

_IN_WORDS = re.compile(f"({'|'.join(SIZES)}) ({'|'.join(COLORS)}) ({'|'.join(SHAPES)}) at the ({'|'.join(PLACES)})")
_IN_BOXES = re.compile(r"^(.+): \[([-\d., e]+)\]$", re.M)


def ask(messages):
    """The template teacher behind the door at which GPT-4 is asked: chat messages -> its reply, the same every time.

    The system message tells the kind: it says "conversation", "reasoning" or "detail", or the user's message is a
    judge's task. All else is in the user's message, captions and perhaps boxes; without boxes, the captions have all.
    ValueError if it is not about the toy world.
    """
    system, text = messages[0]["content"], messages[-1]["content"]
    told = text.split("[Question]")[0]  # what a judge is shown after it is the answers' own
    boxes = [(name, [float(v) for v in box.split(",")]) for name, box in _IN_BOXES.findall(told)]
    if not boxes:  # the first caption has every thing; a box of its size in the middle of its cell stands for it
        for size, color, shape, place in _IN_WORDS.findall(text.split("\n")[0]):
            row, column = divmod(PLACES.index(place), 3)
            half = sum(SIZES[size]) / 4 / SIDE
            x, y = (column + 0.5) / 3, (row + 0.5) / 3
            boxes.append((f"{color} {shape}", [x - half, y - half, x + half, y + half]))
    if not boxes or not all(name.split() in [[c, s] for c in COLORS for s in SHAPES] for name, _ in boxes):
        raise ValueError("the toy teacher knows the toy world alone, and this is something else")
    if text.startswith("[Context]"):
        return judge(text, boxes)
    rng = random.Random(zlib.crc32((system + text).encode()))
    kind = next(kind for kind in ("conversation", "reasoning", "detail") if kind in system)
    pairs = teach(kind, text.split("\n"), boxes, rng)
    if kind == "detail":
        return pairs[0][1]
    return "\n===\n".join(f"Question:\n{question}\n===\nAnswer:\n{answer}" for question, answer in pairs)


def judge(text, boxes):
    """Scores two answers by their statements: 1, and up to 9 more the more of them are right, and none missing (F1)."""
    question, *answers = re.search(
        r"\[Question\]\n(.*?)\n\n\[Assistant 1\]\n(.*?)\n\n\[End of Assistant 1\]\n\n"
        r"\[Assistant 2\]\n(.*?)\n\n\[End of Assistant 2\]", text, re.S).groups()
    things, rng = read(boxes), random.Random(0)
    if question in DETAIL:
        truth = _asks_detail(things, rng)[1]
    else:  # what the teacher would answer, were it to come upon this question
        pairs = (asks(things, rng) for _ in range(3000) for asks in QUESTIONS.values())
        truth = next((pair[1] for pair in pairs if pair and pair[0] == question), None)
    if truth is None:
        raise ValueError(f"the toy judge does not know the question {question!r}")
    truth, *said = (set(re.split(r"(?<=\.) |, so ", answer)) for answer in (truth, *answers))
    scores = [1 + 18 * len(facts & truth) / (len(facts) + len(truth)) for facts in said]
    return " ".join(f"{score:.3g}" for score in scores) + "".join(
        f"\nAssistant {i}: {len(facts)} statements, {len(facts & truth)} of them among the {len(truth)} of the annotations."
        for i, facts in enumerate(said, 1))


def small_talk(rng):
    """A question and an answer that need no picture; text alone, as the ShareGPT part of LLaVA-1.5's mix."""
    low, high = sorted(rng.choices(range(1, 6), k=2))
    one, other = NUMBERS[low], NUMBERS[high]
    difference = "zero" if low == high else NUMBERS[high - low]
    return rng.choice([
        (rng.choice(("Hello!", "Hi!", "Hi there!")), "Hello! Ask me about the shapes in the image."),
        (rng.choice(("Who are you?", "What are you?")), "I am a toy LLaVA, a very small language and vision assistant."),
        (rng.choice(("What can you do?", "Can you help me?")),
         "I can tell you about the shapes in an image, count them and compare them."),
        (rng.choice(("Thank you!", "Thanks!")), "You are welcome."),
        (rng.choice(("Goodbye!", "Bye!")), "Goodbye!"),
        ("What is a circle?", "A circle is a round shape."), ("What is a star?", "A star is a shape with five points."),
        ("What is a square?", "A square is a shape with four corners."),
        ("What is a triangle?", "A triangle is a shape with three corners."),
        (f"What is {other} minus {one}?", f"The answer is {difference}."),
        (f"Which is more, {one} or {other}?", f"The answer is {other}." if low < high else "Both are the same.")])
