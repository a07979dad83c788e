"""Flash cards: the facts of a scene at their tersest, [(front, back)], many in few words.

Looking things up is what the toy Vicuna learns late and suddenly, and from many short questions
first: with chats alone it had not begun after 2,000 steps, with cards it had after 900.
"""
from collections import Counter

from minillava.toy.objects import distance, name_of, read
from minillava.toy.world import COLORS, NUMBERS, PLACES, SHAPES


def cards(boxes, rng, count=10):
    """boxes: [(category, box)] -> `count` cards."""
    things = read(boxes)
    deck = []
    for thing in rng.choices(things, k=count):
        deck.append(rng.choice(cards_of(thing, things, rng)))
    return deck


def cards_of(thing, things, rng):
    """Cards about one thing, each with a single right back; what is hard is there several times."""
    noun = rng.choice((thing.shape, f"{thing.color} shape", f"{thing.size} shape"))
    of = rng.choice(("color", "shape"))
    other = rng.choice(things)
    across = rng.random() < 0.5
    name = name_of(thing, things)
    short = f"{thing.color} {thing.shape}"

    found = [(f"at the {thing.place}", str(thing)),
             (f"How many {noun}s", NUMBERS[how_many(noun, things)])]
    if name:
        found += 4 * nearest_cards(name, thing, things)
        found += 4 * relation_cards(name, thing, other, things, across)
    found += most_cards(of, things)
    if name:
        found += 3 * [(f"Where {name}", f"at the {thing.place}")]
    if name == short:
        found.append((f"How big {short}", thing.size))
    if sum(t.shape == thing.shape for t in things) == 1:
        found.append((f"What color {thing.shape}", thing.color))
    if sum(t.color == thing.color for t in things) == 1:
        found.append((f"What shape {thing.color}", thing.shape))
    return found


def how_many(noun, things):
    """Of the things that a 'star', 'red shape' or 'small shape' is."""
    return sum(noun in (t.shape, f"{t.color} shape", f"{t.size} shape") for t in things)


def nearest_cards(name, thing, things):
    """One card where it is clear what is nearest, else none."""
    near = sorted((distance(thing, other), str(other)) for other in things if other is not thing)
    clear = len(near) > 1 and near[1][0] >= 2 * near[0][0]
    return [(f"nearest to {name}", near[0][1])] if clear else []


def relation_cards(name, thing, other, things, across):
    other_name = name_of(other, things)
    if across:
        low, high, difference = "to the left of", "to the right of", other.column - thing.column
    else:
        low, high, difference = "above", "below", other.row - thing.row
    if not difference or not other_name:
        return []
    return [(f"Is {name} {low} or {high} {other_name}", low if difference > 0 else high)]


def most_cards(of, things):
    ranked = Counter(getattr(thing, of) for thing in things).most_common(2)
    if len(ranked) < 2 or ranked[0][1] == ranked[1][1]:
        return []
    return [(f"Which {of} most", ranked[0][0])]


def options(boxes, rng, count=6):
    """The choices of a question as ScienceQA writes them, and cards: which letter is which?

    -> ("Options: (A) red (B) blue", [("Among the options, blue is", "(B)."), ...])
    """
    things = read(boxes)
    names = {str(thing) for thing in things} | {f"{thing.color} {thing.shape}" for thing in things}
    pool = rng.choice((list(COLORS), SHAPES, NUMBERS, [f"at the {place}" for place in PLACES],
                       sorted(names)))
    choices = rng.sample(pool, min(len(pool), rng.randint(2, 5)))
    letter_of = dict(zip(choices, "ABCDE"))
    told = " ".join(f"({letter}) {choice}" for choice, letter in letter_of.items())
    return f"Options: {told}", [(f"Among the options, {choice} is", f"({letter_of[choice]}).")
                                for choice in rng.choices(choices, k=count)]
