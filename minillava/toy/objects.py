"""What the teacher reads from boxes: things, their names, captions."""
from collections import Counter

from minillava.toy.world import NUMBERS, PLACES, SIDE


class Thing:
    """One annotated object, read from its category and its box (corners as fractions of the picture)."""

    def __init__(self, category, box):
        self.color, self.shape = category.split()
        self.size = "large" if (box[2] - box[0]) * SIDE > 21 else "small"
        self.column, self.row = (int((a + b) / 2 * 3) for a, b in ((box[0], box[2]), (box[1], box[3])))
        self.place = PLACES[3 * self.row + self.column]

    def __str__(self):
        return f"{self.size} {self.color} {self.shape}"


def read(boxes):
    """[(category, box)] -> Things in reading order."""
    return sorted((Thing(category, box) for category, box in boxes), key=lambda thing: (thing.row, thing.column))


def name_of(thing, things):
    """The shortest name that only this one has: the circle's is 'red circle' or, beside a twin, 'small red circle'."""
    short = f"{thing.color} {thing.shape}"
    for name in (short, f"{thing.size} {short}"):
        if sum(str(other).endswith(name) for other in things) == 1:
            return name


def join(parts):
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def number_of(count, noun):
    return f"{NUMBERS[count]} {noun}" + ("" if count == 1 else "s")


def a(noun):
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def captions_of(boxes, rng):
    """Five captions as five people would write them: each sees something else worth saying, the first two everything."""
    things = rng.sample(read(boxes), len(boxes))
    colors, shapes = (Counter(getattr(thing, of) for thing in things) for of in ("color", "shape"))
    return [join([f"{a(str(t))} at the {t.place}" for t in things]),
            join([f"at the {t.place} {a(str(t))}" for t in rng.sample(things, len(things))]),
            join([f"{a(t.color)} {t.shape} at the {t.place}" for t in things]),
            "a picture of " + join([a(str(t)) for t in things]),
            join([number_of(n, f"{color} shape") for color, n in colors.items()]) + ": "
            + join([number_of(n, shape) for shape, n in shapes.items()])]


def distance(one, other):
    """Between the cells of two things, squared."""
    return (one.row - other.row) ** 2 + (one.column - other.column) ** 2
