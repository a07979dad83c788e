"""A scene to play with: drawn, changed in words, and asked about; its teacher knows the answer."""
import random
from dataclasses import dataclass

import torch

from minillava.toy import world
from minillava.toy.annotations import as_fractions
from minillava.toy.judge import true_answer
from minillava.toy.objects import Thing, read
from minillava.toy.world import COLORS, PLACES, SHAPES, SIZES, make_box

EXAMPLES = ("red circle to top-left", "red circle to blue", "red circle to large",
            "add small blue star center", "drop green square")
MOST = 5  # shapes in a scene


@dataclass(frozen=True)
class Scene:
    shapes: list   # [(category, [x1, y1, x2, y2] in pixels)]
    seed: int      # of the background and the shades

    @classmethod
    def new(cls):
        """One that no training has shown, drawn by PyTorch's generator: its seed seeds all of it."""
        seed = int(torch.randint(2**32, ()))
        return cls(world.make_scene(random.Random(seed), "val"), seed)

    def picture(self):
        return world.draw(self.shapes, random.Random(self.seed))

    def changed(self, text):
        """The scene with one change, on the same background; ValueError for what cannot be."""
        return Scene(edit_scene(self.shapes, text, random.Random(self.seed)), self.seed)

    def answer(self, question):
        """The teacher's, who knows the scene, and of two circles not which one is meant."""
        try:
            return true_answer(question, read(as_fractions(self.shapes)))
        except ValueError:
            return ("I know only the training's questions, word for word and where they have one "
                    "answer here, as: How many shapes are there?")


def edit_scene(scene, text, rng):
    """[(category, box)] and a change, worded as in EXAMPLES -> the changed scene.

    A shape is named by any words that are true of it alone: "circle", "red", "small red circle".
    ValueError says what cannot be.
    """
    words = [word for word in text.lower().split() if word not in ("the", "a", "an", "at")]
    if words[:1] == ["add"]:
        return scene + [new_shape(scene, words[1:], rng)]
    if words[:1] == ["drop"] and words[1:]:
        if len(scene) == 1:
            raise ValueError("this is the last shape; a scene without any is none")
        dropped = index_of_shape(scene, words[1:])
        return scene[:dropped] + scene[dropped + 1 :]
    if len(words) > 2 and words[-2] == "to":
        changed = index_of_shape(scene, words[:-2])
        others = scene[:changed] + scene[changed + 1 :]
        shape = changed_shape(scene[changed], words[-1], others, rng)
        return scene[:changed] + [shape] + scene[changed + 1 :]
    raise ValueError(f"a scene is changed as in: {'; '.join(EXAMPLES)}")


def index_of_shape(scene, words):
    """Which shape of the scene all the words are true of."""
    things = [Thing(name, box) for name, box in as_fractions(scene)]
    described = [{thing.size, thing.color, thing.shape, thing.place} for thing in things]
    found = [i for i, properties in enumerate(described) if set(words) <= properties]
    if len(found) != 1:
        meant = [things[i] for i in found] or things
        here = ", ".join(f"{thing} at {thing.place}" for thing in meant)
        raise ValueError(f"{len(found)} shapes are {' '.join(words)!r}, and one must be meant: {here}")
    return found[0]


def new_shape(scene, words, rng):
    """["small", "blue", "star", "center"] -> (category, box); the size may be left out."""
    for word in words:
        if word not in (*SIZES, *COLORS, *SHAPES, *PLACES, "in", "to"):
            raise ValueError(f"{word!r} is no size, color, shape or place, as in: {EXAMPLES[3]}")
    color, shape, place = [one_of(words, pool) for pool in (COLORS, SHAPES, PLACES)]
    size = one_of(words, SIZES) if set(words) & set(SIZES) else rng.choice(list(SIZES))
    if len(scene) == MOST:
        raise ValueError(f"a scene has {MOST} shapes at most; drop one first")
    return f"{color} {shape}", free_box(scene, place, size, rng)


def one_of(words, pool):
    for word in words:
        if word in pool:
            return word
    raise ValueError(f"a new shape wants one of {', '.join(pool)}, as in: {EXAMPLES[3]}")


def changed_shape(shape, word, others, rng):
    """One shape with another color, shape, size or place: whichever `word` is."""
    name, box = shape
    thing = Thing(*as_fractions([shape])[0])
    if word in COLORS:
        return f"{word} {thing.shape}", box
    if word in SHAPES:
        return f"{thing.color} {word}", box
    if word in SIZES:
        return name, free_box(others, thing.place, word, rng)
    if word in PLACES:
        return name, free_box(others, word, thing.size, rng)
    raise ValueError(f"{word!r} is no color, shape, size or place; places are {', '.join(PLACES)}")


def free_box(others, place, size, rng):
    """A box of a size, somewhere at a place where no other shape is."""
    if place in [thing.place for thing in read(as_fractions(others))]:
        raise ValueError(f"there is a shape at the {place} already")
    while True:
        box = make_box(PLACES.index(place), rng)
        if Thing(*as_fractions([("any shape", box)])[0]).size == size:
            return box
