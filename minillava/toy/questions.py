"""The questions of the toy world and their answers, from things alone."""
import random
from collections import Counter

from minillava.toy.objects import a, distance, name_of, number_of, read
from minillava.toy.world import COLORS, SHAPES, SIZES

BRIEF = ("Describe the image concisely.", "Provide a brief description of the given image.", "Give a short caption.",
         "Summarize the picture briefly.")
DETAIL = ("Describe the image in detail.", "What do you see in the image?", "Give a full description of the picture.",
          "Can you describe this image for me?")


def _asks_color(things, rng):
    shape = rng.choice(SHAPES)
    found = [t for t in things if t.shape == shape]
    if rng.random() < 0.4:
        thing = rng.choice(things)
        question = rng.choice((f"What color is the shape at the {thing.place}?",
                               f"Which color does the {thing.place} shape have?"))
        return question, f"The shape at the {thing.place} is {thing.color}."
    if len(found) > 1 or (not found and rng.random() < 0.6):
        return None
    question = rng.choice((f"What color is the {shape}?", f"Which color does the {shape} have?"))
    return question, f"The {shape} is {found[0].color}." if found else f"There is no {shape} in the image."


def _asks_shape(things, rng):
    color = rng.choice(list(COLORS))
    found = [t for t in things if t.color == color]
    if rng.random() < 0.4:
        thing = rng.choice(things)
        question = rng.choice((f"What shape is at the {thing.place}?", f"Which shape do you see at the {thing.place}?"))
        return question, f"The shape at the {thing.place} is {a(thing.shape)}."
    if len(found) > 1 or (not found and rng.random() < 0.8):
        return None
    question = rng.choice((f"What shape is the {color} one?", f"Which shape is {color}?"))
    return question, f"The {color} shape is {a(found[0].shape)}." if found else f"There is no {color} shape in the image."


def _asks_size(things, rng):
    thing = rng.choice(things)
    name = f"{thing.color} {thing.shape}"
    if name_of(thing, things) != name:
        return None
    return rng.choice((f"How big is the {name}?", f"Is the {name} small or large?")), f"The {name} is {thing.size}."


def _asks_total(things, rng):
    question = rng.choice(("How many shapes are there?", "How many shapes do you see?", "Count the shapes."))
    return question, f"There {'is' if len(things) == 1 else 'are'} {number_of(len(things), 'shape')}."


def _attribute(things, rng):
    """A word and the things it is true of; the word mostly occurs in the scene."""
    of = rng.choice(("color", "shape", "size"))
    pool = {"color": list(COLORS), "shape": SHAPES, "size": list(SIZES)}[of]
    word = getattr(rng.choice(things), of) if rng.random() < 0.8 else rng.choice(pool)
    return of, word, [t for t in things if getattr(t, of) == word]


def _asks_count(things, rng):
    of, word, found = _attribute(things, rng)
    noun = word if of == "shape" else f"{word} shape"
    question = rng.choice((f"How many {noun}s are there?", f"How many {noun}s do you see?", f"Count the {noun}s."))
    return question, f"There {'is' if len(found) == 1 else 'are'} {number_of(len(found), noun)}."


def _asks_place(things, rng):
    thing = rng.choice(things)
    name = name_of(thing, things)
    if rng.random() < 0.1:
        name, thing = f"{rng.choice(list(COLORS))} {rng.choice(SHAPES)}", None
        if any(str(t).endswith(name) for t in things):
            return None
    if not name:
        return None
    question = rng.choice((f"Where is the {name}?", f"Where do you see the {name}?"))
    return question, f"The {name} is at the {thing.place}." if thing else f"There is no {name} in the image."


def _asks_relation(things, rng):
    if len(things) < 2:
        return None
    one, other = rng.sample(things, 2)
    names = name_of(one, things), name_of(other, things)
    across = rng.random() < 0.5
    difference = one.column - other.column if across else one.row - other.row
    if not all(names) or not difference:
        return None
    low, high = ("to the left of", "to the right of") if across else ("above", "below")
    question = f"Is the {names[0]} {low} or {high} the {names[1]}?"
    return question, f"The {names[0]} is {low if difference < 0 else high} the {names[1]}."


def _asks_exists(things, rng):
    color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
    if rng.random() < 0.8:  # of what is there, or a mix of two that are
        color = rng.choice(things).color
        shape = rng.choice([t.shape for t in things if rng.random() < 0.5 or t.color == color] or SHAPES)
    found = any(t.color == color and t.shape == shape for t in things)
    if found and rng.random() < 0.4:
        return None
    name = a(noun := f"{color} {shape}")
    question = rng.choice((f"Is there {name}?", f"Do you see {name} in the image?", f"Does the image show {name}?"))
    return question, f"Yes, there is {name}." if found else f"No, there is no {noun}."


def _asks_compare(things, rng):
    of = rng.choice(("color", "shape"))
    words = sorted({getattr(t, of) for t in things})
    if len(words) < 2:
        return None
    words = rng.sample(words, 2)
    counts = [sum(getattr(t, of) == word for t in things) for word in words]
    nouns = words if of == "shape" else [f"{word} shape" for word in words]
    question = rng.choice((f"Are there more {nouns[0]}s or more {nouns[1]}s?",
                           f"Which are more, {nouns[0]}s or {nouns[1]}s?"))
    verb = "is" if counts[0] == 1 else "are"
    facts = f"There {verb} {number_of(counts[0], nouns[0])} and {number_of(counts[1], nouns[1])}"
    if counts[0] == counts[1]:
        return question, f"{facts}, so there are as many of one as of the other."
    return question, f"{facts}, so there are more {nouns[counts[1] > counts[0]]}s."


def _asks_remove(things, rng):
    of, word, found = _attribute(things, rng)
    if not found:
        return None
    noun = word if of == "shape" else f"{word} shape"
    question = rng.choice((f"If all {noun}s were taken away, how many shapes would be left?",
                           f"How many shapes remain without the {noun}s?"))
    verb = "is" if len(things) == 1 else "are"
    left = len(things) - len(found)
    return question, (f"There {verb} {number_of(len(things), 'shape')} and {number_of(len(found), noun)}, "
                      f"so {number_of(left, 'shape')} would be left.")


def _asks_nearest(things, rng):
    if len(things) < 3:
        return None
    thing = rng.choice(things)
    name = name_of(thing, things)
    distances = sorted((distance(t, thing), i) for i, t in enumerate(things) if t is not thing)
    nearest = things[distances[0][1]]
    if not name or distances[1][0] < 2 * distances[0][0]:  # what is nearest must be clear to the eye
        return None
    question = rng.choice((f"Which shape is nearest to the {name}?", f"What is closest to the {name}?"))
    return question, (f"The {name} is at the {thing.place}, and the shape nearest to it is the {nearest} "
                      f"at the {nearest.place}.")


def _asks_most(things, rng):
    of = rng.choice(("color", "shape"))
    ranked = Counter(getattr(t, of) for t in things).most_common(2)
    if len(things) < 3 or len(ranked) > 1 and ranked[0][1] == ranked[1][1]:
        return None
    word, count = ranked[0]
    question = rng.choice((f"Which {of} is the most common?", f"What {of} do most of the shapes have?"))
    noun = word if of == "shape" else f"{word} shape"
    return question, f"There are {number_of(count, noun)}, more than of any other {of}, so the answer is {word}."


def _asks_detail(things, rng):
    count = f"The image shows {number_of(len(things), 'shape')}."
    return rng.choice(DETAIL), " ".join([count] + [f"There is {a(str(t))} at the {t.place}." for t in things])

CONVERSATION = {"color": _asks_color, "shape": _asks_shape, "size": _asks_size, "total": _asks_total, "count": _asks_count,
                "position": _asks_place, "relation": _asks_relation, "exists": _asks_exists}
REASONING = {"compare": _asks_compare, "remove": _asks_remove, "nearest": _asks_nearest, "most": _asks_most}
QUESTIONS = {**CONVERSATION, "detail": _asks_detail, **REASONING}


def heldout_questions(symbols, per_type, seed):
    """-> [{"type", "image", "question", "answer"}], `per_type` of each type, each from another picture than the last."""
    rng, names = random.Random(seed), list(symbols)
    questions = []
    for kind, ask in QUESTIONS.items():
        found = 0
        while found < per_type:
            name = names[len(questions) % len(names)] if rng.random() < 0.5 else rng.choice(names)
            pair = ask(read(symbols[name][1]), rng)
            if pair:
                questions.append({"type": kind, "image": name, "question": pair[0], "answer": pair[1]})
                found += 1
    return questions
