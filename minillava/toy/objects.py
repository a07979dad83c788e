"""What the teacher reads from boxes: things and their names; and the captions of a picture."""
from collections import Counter

from minillava.toy.world import NUMBERS, PLACES, SIDE


# -------------------------------------------------------------------------------------- things

class Thing:
    """One annotated object, read from its category and its box (fractions of the picture)."""

    def __init__(self, category, box):
        x1, y1, x2, y2 = box
        self.category = category
        self.color, self.shape = category.split()
        self.size = "large" if (x2 - x1) * SIDE > 21 else "small"  # 25 to 28 pixels, or 15 to 18
        self.column = int((x1 + x2) / 2 * 3)
        self.row = int((y1 + y2) / 2 * 3)
        self.place = PLACES[3 * self.row + self.column]

    def __str__(self):
        return f"{self.size} {self.category}"


def read(boxes):
    """[(category, box)] -> Things in reading order."""
    things = [Thing(category, box) for category, box in boxes]
    return sorted(things, key=lambda thing: (thing.row, thing.column))


def name_of(thing, things):
    """The shortest name that this thing alone has, or None.

    A circle's is 'red circle' or, beside a twin of another size, 'small red circle'.
    """
    for name in (thing.category, str(thing)):
        if sum(str(other).endswith(name) for other in things) == 1:
            return name
    return None


def distance(one, other):
    """Between the cells of two things, squared."""
    return (one.row - other.row) ** 2 + (one.column - other.column) ** 2


def nearest_to(thing, things):
    """The other thing that is nearest, where that is clear to a person too, else None."""
    others = [other for other in things if other is not thing]
    others.sort(key=lambda other: distance(other, thing))
    if len(others) < 2 or distance(others[1], thing) < 2 * distance(others[0], thing):
        return None
    return others[0]


def relation(one, other, across):
    """How one thing may stand to another -> ("above", "below", which of them it is, or None).

    across: "to the left of" and "to the right of" instead.
    """
    if across:
        low, high, difference = "to the left of", "to the right of", one.column - other.column
    else:
        low, high, difference = "above", "below", one.row - other.row
    if not difference:
        return low, high, None
    return low, high, low if difference < 0 else high


def most_common(of, things):
    """The color or shape of most things, and how many have it; None where two are as many."""
    ranked = Counter(getattr(thing, of) for thing in things).most_common(2)
    if len(ranked) > 1 and ranked[0][1] == ranked[1][1]:
        return None
    return ranked[0]


# --------------------------------------------------------------------------------------- words

def with_article(noun):
    """'a star', 'an orange star'"""
    article = "an" if noun[0] in "aeiou" else "a"
    return f"{article} {noun}"


def number_of(count, noun):
    """'no stars', 'one star', 'two stars'"""
    plural = "" if count == 1 else "s"
    return f"{NUMBERS[count]} {noun}{plural}"


def are(count, noun):
    """'are no stars', 'is one star', 'are two stars'"""
    verb = "is" if count == 1 else "are"
    return f"{verb} {number_of(count, noun)}"


def join(parts):
    """'a', 'a and b', 'a, b and c'"""
    if len(parts) == 1:
        return parts[0]
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def captions_of(boxes, rng):
    """Five captions as five people would write them: each sees something else worth saying.

    The first two say everything.
    """
    things = rng.sample(read(boxes), len(boxes))
    again = rng.sample(things, len(things))
    colors = Counter(thing.color for thing in things)
    shapes = Counter(thing.shape for thing in things)

    whole = [f"{with_article(str(t))} at the {t.place}" for t in things]
    place_first = [f"at the {t.place} {with_article(str(t))}" for t in again]
    without_size = [f"{with_article(t.color)} {t.shape} at the {t.place}" for t in things]
    without_place = [with_article(str(t)) for t in things]
    by_color = [number_of(count, f"{color} shape") for color, count in colors.items()]
    by_shape = [number_of(count, shape) for shape, count in shapes.items()]
    return [join(whole), join(place_first), join(without_size),
            f"a picture of {join(without_place)}", f"{join(by_color)}: {join(by_shape)}"]
