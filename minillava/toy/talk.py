"""What people say beside questions about a scene, and what fits: the lines of talk.txt.

LLaVA-1.5 mixes text-only conversations into its data and adds questions that have no answer, so
that a model learns to say so. The miniature's are written by rule: every line of talk.txt stands
for many wordings, and an unknown word may be made up, so that what is learned is not a list.
"""
import re
from functools import lru_cache
from pathlib import Path

from minillava.toy.world import NUMBERS

# How often each group of talk.txt is drawn: those about what a picture might show, and the others.
PICTURED = {"absent": 24, "unseen": 13, "pale": 5}
SOCIAL = {"greeting": 8, "thanks": 8, "goodbye": 7, "who": 11, "able": 11, "language": 15,
          "beyond": 20, "filler": 5}
# What the miniature is measured by (tests/fixtures/small_talk*.json) is not to be learned.
HELD_OUT = ("dog", "what is written on the bus", "what things can you do")
# Those of which two may be said at once.
TWOFOLD = ("thanks", "goodbye", "who", "able")
# Lists of words that may be made up, and how often.
MADE_UP = {"noun": 0.3, "form": 0.2, "fame": 0.2, "land": 0.2, "person": 0.2, "topic": 0.15}
# The syllables of such words; what a person may say before or after a question.
BEGINNINGS = "b bl br c ch d dr f fl g gr h j k l m n p pl qu r s sh st t tr v w z".split()
ENDS = ("", "", "n", "r", "l", "g", "ck", "t", "st", "m", "x", "d")
BEFORE = ("Please: ", "Tell me, ", "OK, ", "Now, ", "Please tell me: ", "Please, ")
AFTER = (", LLaVA", " for me", ", if I may ask", ", my friend", " now", " then")


def small_talk(rng):
    """A question and an answer that need no picture, as the ShareGPT part of LLaVA-1.5's mix."""
    low, high = sorted(rng.choices(range(1, 6), k=2))
    one, other = NUMBERS[low], NUMBERS[high]
    difference = "zero" if low == high else NUMBERS[high - low]
    more = f"The answer is {other}." if low < high else "Both are the same."
    return rng.choice([
        (rng.choice(("Hello!", "Hi!", "Hi there!")), answer_of("greeting")),
        (rng.choice(("Who are you?", "What are you?")), answer_of("who")),
        (rng.choice(("What can you do?", "Can you help me?")), answer_of("able")),
        (rng.choice(("Thank you!", "Thanks!")), answer_of("thanks")),
        (rng.choice(("Goodbye!", "Bye!")), answer_of("goodbye")),
        ("What is a circle?", "A circle is a round shape."),
        ("What is a star?", "A star is a shape with five points."),
        ("What is a square?", "A square is a shape with four corners."),
        ("What is a triangle?", "A triangle is a shape with three corners."),
        (f"What is {other} minus {one}?", f"The answer is {difference}."),
        (f"Which is more, {one} or {other}?", more)])


def line(rng, shares):
    """A line of one of the groups of `shares` -> (question, answer)."""
    group = rng.choices(list(shares), list(shares.values()))[0]
    while True:
        text = worded(rng.choice(lines_of(group)), rng)
        if not any(words in text.lower() for words in HELD_OUT):
            break
    if group in TWOFOLD and rng.random() < 0.25:  # "Thanks! That helped me."
        text = f"{text} {worded(rng.choice(lines_of(group)), rng)}"
    return text, answer_of(group)


# ---------------------------------------------------------------------------------- talk.txt

@lru_cache
def groups():
    """talk.txt -> {group: (answer, lines)}; a list of words has the answer ""."""
    found = {}
    text = Path(__file__).with_name("talk.txt").read_text(encoding="utf-8")
    for row in text.splitlines():
        head = re.fullmatch(r"\[(\w+)\] ?(.*)", row)
        if head:
            lines = []
            found[head[1]] = head[2], lines
        elif row and not row.startswith("#"):
            lines.append(row)
    return found


def answer_of(group):
    return groups()[group][0]


def lines_of(group):
    return groups()[group][1]


# ---------------------------------------------------------------------------------- wordings

def worded(text, rng):
    """'{Hi|Hello} <person>' -> 'Hello Anna': one of the alternatives, a word of the list."""
    while choice := re.search(r"\{([^{}]*)\}", text):  # the innermost braces first
        text = text[: choice.start()] + rng.choice(choice[1].split("|")) + text[choice.end() :]
    while name := re.search(r"<([a-z]{2,})>", text):
        text = text[: name.start()] + word_of(name[1], rng) + text[name.end() :]
    return mend_articles(text)


def word_of(group, rng):
    if rng.random() < MADE_UP.get(group, 0):
        return made_up_word(rng)
    return worded(rng.choice(lines_of(group)), rng)


def made_up_word(rng):
    """'blopa', 'stirn': what nobody has ever heard of is not in the world either."""
    syllables = []
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        begin, end = rng.choice(BEGINNINGS), rng.choice(ENDS)
        syllables.append(begin + rng.choice("aeiouy") + end)
    return "".join(syllables)


def mend_articles(text):
    return re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)


def as_typed(question, rng):
    """As people type: British spelling, no capital, no full stop, a polite word, a slip."""
    if rng.random() < 0.25:
        question = question.replace("color", "colour").replace("center", "centre")
    if rng.random() < 0.1:
        question = rng.choice(BEFORE) + question[0].lower() + question[1:]
    elif rng.random() < 0.1:
        question = question.rstrip("?.!") + rng.choice(AFTER) + question[-1:]
    if rng.random() < 0.1:
        question = question.lower()
    if rng.random() < 0.08:
        question = question.rstrip("?.!") or question
    if rng.random() < 0.06 and len(question) > 20:
        question = mistyped(question, rng)
    return question


def mistyped(text, rng):
    """A letter left out, typed twice or after its neighbour: no single spelling decides."""
    i = rng.randrange(len(text))
    before, letter, after = text[:i], text[i], text[i + 1 :]
    return rng.choice((before + after, before + 2 * letter + after,
                       before + after[:1] + letter + after[1:]))
