"""The synthetic world of the miniature: scenes, COCO annotations, and a teacher that never sees a picture.

A scene is 1 to 5 coloured shapes on a background that varies: 6 colours x 4 shapes x 2 sizes, each somewhere inside its
own cell of a 3 x 3 layout. It is written down as COCO writes pictures down: five captions each, a category and a box per
object. The teacher gets the captions and boxes alone, as GPT-4 did (LLaVA section 3), and makes the three kinds of
instruction data: conversation, detailed description, complex reasoning.

**Train and held-out scenes never share a combination**, the group of coloured shapes in a scene whatever their sizes and
places: a red circle with two blue stars is either always in training or never (`split_of`).
"""
import json
import math
import random
import re
import zlib
from collections import Counter
from pathlib import Path

from PIL import Image, ImageDraw

COLORS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 220), "yellow": (240, 210, 40),
          "purple": (150, 60, 180), "orange": (245, 130, 30)}
SHAPES = ("circle", "square", "triangle", "star")
SIZES = {"small": (15, 18), "large": (25, 28)}  # width and height of a box in pixels, from and to
PLACES = ("top-left", "top-middle", "top-right", "middle-left", "center", "middle-right",
          "bottom-left", "bottom-middle", "bottom-right")
NUMBERS = ("no", "one", "two", "three", "four", "five")
SIDE = 96
CATEGORIES = [{"id": 1 + i * len(SHAPES) + j, "name": f"{color} {shape}", "supercategory": shape}
              for i, color in enumerate(COLORS) for j, shape in enumerate(SHAPES)]
BRIEF = ("Describe the image concisely.", "Provide a brief description of the given image.", "Give a short caption.",
         "Summarize the picture briefly.")
DETAIL = ("Describe the image in detail.", "What do you see in the image?", "Give a full description of the picture.",
          "Can you describe this image for me?")


# ------------------------------------------------------------------------------------------------- scenes and pictures

def split_of(categories):
    """'val' for one group of coloured shapes in ten, by its own hash, else 'train'."""
    return "val" if zlib.crc32(",".join(sorted(categories)).encode()) % 10 == 0 else "train"


def make_scene(rng, split):
    """-> [(category name, [x1, y1, x2, y2] in pixels)], in the given split; half the scenes repeat colours and shapes."""
    while True:
        colors, shapes = (rng.sample(list(pool), rng.choice((2, len(pool)))) for pool in (COLORS, SHAPES))
        places = rng.sample(range(9), rng.choice((1, 2, 3, 3, 4, 4, 4, 5, 5, 5)))
        names = [f"{rng.choice(colors)} {rng.choice(shapes)}" for _ in places]
        if split_of(names) == split:
            return [(name, make_box(place, rng)) for name, place in zip(names, places)]


def make_box(place, rng):
    """A box of either size near the middle of a cell, 0 to 8 in reading order, up to 4 pixels off."""
    width, cell = rng.randint(*SIZES[rng.choice(list(SIZES))]), SIDE // 3
    room = (cell - width) // 2
    x, y = (cell * k + room + rng.randint(-min(4, room - 1), min(4, room - 1)) for k in (place % 3, place // 3))
    return [x, y, x + width, y + width]


def place_of(box):
    """The cell, 0 to 8, that the middle of a box in pixels lies in."""
    return 3 * int((box[1] + box[3]) / 2 * 3 / SIDE) + int((box[0] + box[2]) / 2 * 3 / SIDE)


def draw(scene, rng):
    """A scene -> an RGB picture of SIDE x SIDE pixels; background and shades vary and are nowhere written down."""
    S = 2  # drawn twice as large and shrunk, for smooth edges
    low, high = sorted((rng.randint(0, 60), rng.randint(0, 60)))
    light = rng.random() < 0.5
    shades = [tuple(255 - v if light else v for v in [rng.randint(low, high)] * 3) for _ in range(2)]
    image = Image.linear_gradient("L").resize((SIDE * S, SIDE * S)).rotate(rng.choice((0, 90, 180, 270)))
    image = Image.composite(*(Image.new("RGB", image.size, shade) for shade in shades), image)
    pen = ImageDraw.Draw(image)
    for name, box in scene:
        color, shape = name.split()
        x1, y1, x2, y2 = (S * v for v in box)
        fill = tuple(min(255, max(0, v + rng.randint(-15, 15))) for v in COLORS[color])
        if shape == "circle":
            pen.ellipse((x1, y1, x2, y2), fill)
        elif shape == "square":
            pen.rectangle((x1, y1, x2, y2), fill)
        elif shape == "triangle":
            pen.polygon([((x1 + x2) / 2, y1), (x2, y2), (x1, y2)], fill)
        else:
            r, cx, cy = (x2 - x1) / 2, (x1 + x2) / 2, (y1 + y2) / 2
            pen.polygon([(cx + (r if k % 2 == 0 else 0.4 * r) * math.sin(k * math.pi / 5),
                          cy - (r if k % 2 == 0 else 0.4 * r) * math.cos(k * math.pi / 5)) for k in range(10)], fill)
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


# ------------------------------------------------------------------------------------ what the teacher reads from boxes

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


# ---------------------------------------------------------------------------------------------------------- the teacher

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


def distance(one, other):
    """Between the cells of two things, squared."""
    return (one.row - other.row) ** 2 + (one.column - other.column) ** 2


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


# ------------------------------------------------------------------------------------------------ a world on the disk

def make_world(folder, split, scenes, seed):
    """Draws pictures to folder/split/ and writes captions_split.json and instances_split.json, as COCO does."""
    folder, rng = Path(folder), random.Random(f"{seed} {split}")
    (folder / split).mkdir(parents=True, exist_ok=True)
    images, captions, instances = [], [], []
    for image_id in range(1, scenes + 1):
        scene = make_scene(rng, split)
        images.append({"id": image_id, "file_name": f"{image_id:012}.png", "width": SIDE, "height": SIDE})
        draw(scene, rng).save(folder / split / images[-1]["file_name"], compress_level=1)
        for caption in captions_of(as_fractions(scene), rng):
            captions.append({"id": len(captions) + 1, "image_id": image_id, "caption": caption})
        for name, (x1, y1, x2, y2) in scene:
            category = next(c["id"] for c in CATEGORIES if c["name"] == name)
            instances.append({"id": len(instances) + 1, "image_id": image_id, "category_id": category, "iscrowd": 0,
                              "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)})
    for name, content in (("captions", {"images": images, "annotations": captions}),
                          ("instances", {"images": images, "annotations": instances, "categories": CATEGORIES})):
        (folder / f"{name}_{split}.json").write_text(json.dumps(content))


def as_fractions(scene):
    return [(name, [round(v / SIDE, 3) for v in box]) for name, box in scene]


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


# ---------------------------------------------------------------------------------------------------- mini ScienceQA

# What can be asked with options -> how to find the right choice in the teacher's answer, subject, grade, and lecture.
PROBLEMS = {
    "color": (r"is (\w+)\.$", "natural science", 1, ""),
    "shape": (r"is an? (\w+)\.$", "natural science", 2, ""),
    "size": (r"is (\w+)\.$", "natural science", 3, ""),
    "total": (r"(?:is|are) (\w+) shapes?\.$", "natural science", 4, ""),
    "count": (r"There (?:is|are) (\w+) ", "natural science", 5, ""),
    "exists": (r"^(Yes|No),", "natural science", 6, ""),
    "position": (r"is (at the [\w-]+)\.$", "social science", 7, ""),
    "relation": (r" is (to the left of|to the right of|above|below) ", "social science", 8, ""),
    "nearest": (r"nearest to it is the (.+?) at", "social science", 9, "The nearest shape is the closest one."),
    "remove": (r"so (\w+) shapes? would", "natural science", 10, "What is taken away is not left."),
    "most": (r"answer is (\w+)\.$", "natural science", 11, "The most common one is there more than any other."),
}
CHOICES = (tuple(COLORS), SHAPES, tuple(SIZES), NUMBERS, tuple(f"at the {place}" for place in PLACES), ("Yes", "No"),
           ("to the left of", "to the right of"), ("above", "below"))
WORDS = {"color": tuple(COLORS), "shape": SHAPES, "size": tuple(SIZES), "number": NUMBERS[1:]}
LOOKS = {"circle": "is round", "star": "has five points", "square": "has four corners",
         "triangle": "has three corners"}


def make_scienceqa(folder, sizes, seed):
    """Writes a mini ScienceQA in the official layout; sizes: how many problems of each split, {"train": 20000, ...}.

    Six in ten show a picture, some with a hint where to look; a quarter are of text alone, and their hint tells a scene
    in words; the rest has neither. Each has a scene of its own. Those of val and test are held out from train, and so
    are the questions without a scene, each with its options.
    """
    folder, problems, splits, captions = Path(folder), {}, {}, {}
    for split, size in sizes.items():
        rng, splits[split] = random.Random(f"{seed} {split}"), []
        for _ in range(size):
            problem, scene = make_problem(rng, "train" if split == "train" else "val")
            i = str(len(problems) + 1)
            if scene:
                picture = folder / "images" / split / i / "image.png"
                picture.parent.mkdir(parents=True, exist_ok=True)
                draw(scene, rng).save(picture, compress_level=1)
                captions[i] = captions_of(as_fractions(scene), rng)[3] + "."
            problems[i] = problem | {"image": "image.png" if scene else None, "split": split}
            splits[split].append(i)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("problems", problems), ("pid_splits", splits), ("captions", {"captions": captions})):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1))


def make_problem(rng, split):
    """-> (a problem of ScienceQA, the scene of its picture or None), in the given split of `split_of`."""
    source = rng.choices(("picture", "text", "words"), (60, 25, 15))[0]
    while True:
        hint, scene, kind = "", make_scene(rng, split), rng.choice(list(PROBLEMS))
        boxes = as_fractions(scene)
        things = read(boxes)
        if source == "words":
            question, answer, key, others = _asks_words(rng)
            subject, grade, lecture = "language science", rng.randint(1, 12), ""
        else:
            pattern, subject, grade, lecture = PROBLEMS[kind]
            if source == "picture" and kind in ("color", "shape", "size") and rng.random() < 0.6:
                thing = rng.choice(things)
                hint, question = f"Look at the shape at the {thing.place}.", f"Which {kind} does it have?"
                value = getattr(thing, kind)
                pair = question, f"The shape at the {thing.place} is {a(value) if kind == 'shape' else value}."
            else:
                pair = QUESTIONS[kind](things, rng)
            if not pair or not (found := re.search(pattern, pair[1])):  # "There is no circle": no choice to make
                continue
            (question, answer), key = pair, found[1]
            if source == "text":
                if "image" in question or "picture" in question:
                    continue
                hint = captions_of(boxes, rng)[rng.randrange(2)] + "."  # the two that tell everything
                if subject == "natural science":
                    subject = "language science"
            others = next((pool for pool in CHOICES if key in pool), sorted({str(thing) for thing in things}))
        others = [choice for choice in others if choice != key]
        if not others:
            continue
        choices = rng.sample(others, min(len(others), rng.choice((2, 3, 4, 4)))) + [key]
        rng.shuffle(choices)
        if source == "words" and split_of([question, *choices]) != split:
            continue
        # What is to be seen, the question once more, the answer, its letter: each step looks up what stands before it,
        # as in the chats that the language model knows. Without the question again, counting stayed at one in two.
        solution = f"{question} {answer} Among the options, {key} is ({'ABCDE'[choices.index(key)]})."
        if source == "picture":
            solution = f"The image shows {join([f'at the {t.place} {a(str(t))}' for t in things])}. {solution}"
        problem = {"question": question, "choices": choices, "answer": choices.index(key), "hint": hint,
                   "task": "closed choice", "grade": f"grade{grade}", "subject": subject,
                   "topic": "words" if source == "words" else kind, "category": source, "skill": f"{source} {kind}",
                   "lecture": lecture, "solution": solution}
        return problem, scene if source == "picture" else None


def _asks_words(rng):
    """A question about words and numbers -> (question, answer, right choice, others)."""
    low, high = sorted(rng.sample(range(1, 6), 2))
    of, other = rng.sample(list(WORDS), 2)
    word, shape = rng.choice(WORDS[of]), rng.choice(SHAPES)
    return rng.choice([
        (f"Which of these is a {of}?", f"The {of} is {word}.", word, WORDS[other]),
        (f"Which shape {LOOKS[shape]}?", f"The {shape} {LOOKS[shape]}.", shape, SHAPES),
        (f"What is {NUMBERS[high]} minus {NUMBERS[low]}?", f"The answer is {NUMBERS[high - low]}.", NUMBERS[high - low],
         NUMBERS[1:]),
        (f"Which is more, {NUMBERS[low]} or {NUMBERS[high]}?", f"The answer is {NUMBERS[high]}.", NUMBERS[high],
         (NUMBERS[low],)),
    ])
