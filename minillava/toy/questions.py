"""The questions of the toy world and their answers.

Each function draws one question of its type about some things (see objects.py) -> (question,
answer), or None where what it drew cannot be asked: "What color is the circle?" wants one circle.
Answers are whole sentences that follow from the things alone.
"""
import random

from minillava.toy.objects import (are, most_common, name_of, nearest_to, number_of, read,
                                   relation, with_article)
from minillava.toy.world import COLORS, SHAPES, SIZES

BRIEF = ("Describe the image concisely.", "Provide a brief description of the given image.",
         "Give a short caption.", "Summarize the picture briefly.")
DETAIL = ("Describe the image in detail.", "What do you see in the image?",
          "Give a full description of the picture.", "Can you describe this image for me?")
VALUES = {"color": tuple(COLORS), "shape": SHAPES, "size": tuple(SIZES)}


# -------------------------------------------------------------------------------- conversation

def ask_color(things, rng):
    shape = rng.choice(SHAPES)
    if rng.random() < 0.4:  # by its place
        thing = rng.choice(things)
        question = rng.choice((f"What color is the shape at the {thing.place}?",
                               f"Which color does the {thing.place} shape have?"))
        return question, f"The shape at the {thing.place} is {thing.color}."
    found = [t for t in things if t.shape == shape]
    if len(found) > 1 or (not found and rng.random() < 0.6):
        return None
    question = rng.choice((f"What color is the {shape}?", f"Which color does the {shape} have?"))
    if not found:
        return question, f"There is no {shape} in the image."
    return question, f"The {shape} is {found[0].color}."


def ask_shape(things, rng):
    color = rng.choice(list(COLORS))
    if rng.random() < 0.4:  # by its place
        thing = rng.choice(things)
        question = rng.choice((f"What shape is at the {thing.place}?",
                               f"Which shape do you see at the {thing.place}?"))
        return question, f"The shape at the {thing.place} is {with_article(thing.shape)}."
    found = [t for t in things if t.color == color]
    if len(found) > 1 or (not found and rng.random() < 0.8):
        return None
    question = rng.choice((f"What shape is the {color} one?", f"Which shape is {color}?"))
    if not found:
        return question, f"There is no {color} shape in the image."
    return question, f"The {color} shape is {with_article(found[0].shape)}."


def ask_size(things, rng):
    thing = rng.choice(things)
    name = thing.category
    if name_of(thing, things) != name:
        return None
    question = rng.choice((f"How big is the {name}?", f"Is the {name} small or large?"))
    return question, f"The {name} is {thing.size}."


def ask_total(things, rng):
    question = rng.choice(("How many shapes are there?", "How many shapes do you see?",
                           "Count the shapes."))
    return question, f"There {are(len(things), 'shape')}."


def ask_count(things, rng):
    noun, found = some_kind(things, rng)
    question = rng.choice((f"How many {noun}s are there?", f"How many {noun}s do you see?",
                           f"Count the {noun}s."))
    return question, f"There {are(len(found), noun)}."


def ask_place(things, rng):
    thing = rng.choice(things)
    name = name_of(thing, things)
    absent = rng.random() < 0.1
    if absent:
        name = f"{rng.choice(list(COLORS))} {rng.choice(SHAPES)}"
    if not name or (absent and any(str(t).endswith(name) for t in things)):
        return None
    question = rng.choice((f"Where is the {name}?", f"Where do you see the {name}?"))
    if absent:
        return question, f"There is no {name} in the image."
    return question, f"The {name} is at the {thing.place}."


def ask_relation(things, rng):
    if len(things) < 2:
        return None
    one, other = rng.sample(things, 2)
    name, other_name = name_of(one, things), name_of(other, things)
    low, high, right = relation(one, other, across=rng.random() < 0.5)
    if not name or not other_name or not right:
        return None
    return (f"Is the {name} {low} or {high} the {other_name}?",
            f"The {name} is {right} the {other_name}.")


def ask_exists(things, rng):
    color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
    if rng.random() < 0.8:  # of what is there, or a mix of two that are
        color = rng.choice(things).color
        shapes = [t.shape for t in things if rng.random() < 0.5 or t.color == color]
        shape = rng.choice(shapes or SHAPES)
    noun = f"{color} {shape}"
    one = with_article(noun)
    found = any(t.category == noun for t in things)
    if found and rng.random() < 0.4:  # else yes would be the answer too often
        return None
    question = rng.choice((f"Is there {one}?", f"Do you see {one} in the image?",
                           f"Does the image show {one}?"))
    return question, f"Yes, there is {one}." if found else f"No, there is no {noun}."


# ------------------------------------------------------------------- description and reasoning

def ask_detail(things, rng):
    sentences = [f"The image shows {number_of(len(things), 'shape')}."]
    sentences += [f"There is {with_article(str(t))} at the {t.place}." for t in things]
    return rng.choice(DETAIL), " ".join(sentences)


def ask_compare(things, rng):
    of = rng.choice(("color", "shape"))
    values = sorted({getattr(t, of) for t in things})
    if len(values) < 2:
        return None
    one, other = rng.sample(values, 2)
    count = sum(getattr(t, of) == one for t in things)
    other_count = sum(getattr(t, of) == other for t in things)
    noun, other_noun = noun_of(of, one), noun_of(of, other)

    question = rng.choice((f"Are there more {noun}s or more {other_noun}s?",
                           f"Which are more, {noun}s or {other_noun}s?"))
    facts = f"There {are(count, noun)} and {number_of(other_count, other_noun)}"
    if count == other_count:
        return question, f"{facts}, so there are as many of one as of the other."
    more = noun if count > other_count else other_noun
    return question, f"{facts}, so there are more {more}s."


def ask_remove(things, rng):
    noun, found = some_kind(things, rng)
    if not found:
        return None
    question = rng.choice((f"If all {noun}s were taken away, how many shapes would be left?",
                           f"How many shapes remain without the {noun}s?"))
    left = len(things) - len(found)
    facts = f"There {are(len(things), 'shape')} and {number_of(len(found), noun)}"
    return question, f"{facts}, so {number_of(left, 'shape')} would be left."


def ask_nearest(things, rng):
    if len(things) < 3:
        return None
    thing = rng.choice(things)
    name = name_of(thing, things)
    nearest = nearest_to(thing, things)
    if not name or not nearest:
        return None
    question = rng.choice((f"Which shape is nearest to the {name}?",
                           f"What is closest to the {name}?"))
    return question, (f"The {name} is at the {thing.place}, and the shape nearest to it "
                      f"is the {nearest} at the {nearest.place}.")


def ask_most(things, rng):
    of = rng.choice(("color", "shape"))
    most = most_common(of, things)
    if len(things) < 3 or not most:
        return None
    value, count = most
    question = rng.choice((f"Which {of} is the most common?",
                           f"What {of} do most of the shapes have?"))
    facts = f"There {are(count, noun_of(of, value))}, more than of any other {of}"
    return question, f"{facts}, so the answer is {value}."


# -------------------------------------------------------------------------------- what they share

def some_kind(things, rng):
    """'star', 'red shape' or 'small shape', mostly of what is there -> it, and what it fits."""
    of = rng.choice(("color", "shape", "size"))
    if rng.random() < 0.8:
        value = getattr(rng.choice(things), of)
    else:
        value = rng.choice(VALUES[of])
    return noun_of(of, value), [t for t in things if getattr(t, of) == value]


def noun_of(of, value):
    return value if of == "shape" else f"{value} shape"


CONVERSATION = {"color": ask_color, "shape": ask_shape, "size": ask_size, "total": ask_total,
                "count": ask_count, "position": ask_place, "relation": ask_relation,
                "exists": ask_exists}
REASONING = {"compare": ask_compare, "remove": ask_remove, "nearest": ask_nearest,
             "most": ask_most}
QUESTIONS = {**CONVERSATION, "detail": ask_detail, **REASONING}
TRIES = 1000  # at most, for each question wanted; of many scenes, two in five tries succeed


def heldout_questions(symbols, per_type, seed):
    """-> [{"type", "image", "question", "answer"}], `per_type` of each type.

    symbols: {image: (captions, boxes)}. The pictures are taken in turn or at random. ValueError
    where none of them gives rise to a question of some type.
    """
    rng = random.Random(seed)
    names = list(symbols)
    questions = []
    for kind, ask in QUESTIONS.items():
        wanted = len(questions) + per_type
        tries = 0
        while len(questions) < wanted:
            tries += 1
            if tries > TRIES * per_type:
                raise ValueError(f"of {len(names)} scenes there are too few questions of the type "
                                 f"{kind}; draw more with --heldout")
            in_turn = names[len(questions) % len(names)]
            name = in_turn if rng.random() < 0.5 else rng.choice(names)
            pair = ask(read(symbols[name][1]), rng)
            if pair:
                question, answer = pair
                questions.append({"type": kind, "image": name,
                                  "question": question, "answer": answer})
    return questions
