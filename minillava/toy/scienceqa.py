"""Mini ScienceQA: questions of the toy world with options, in the official layout.

A problem is a dict as in ScienceQA's problems.json. Six in ten show a picture, some with a hint
where to look; a quarter are of text alone, and their hint tells a scene in words; the rest is
about words and has neither.
"""
import json
import random
import re
from pathlib import Path

from minillava.files import write
from minillava.toy.annotations import as_fractions
from minillava.toy.objects import captions_of, join, read, with_article
from minillava.toy.questions import QUESTIONS
from minillava.toy.world import (COLORS, NUMBERS, PLACES, SHAPES, SIZES, draw, make_scene,
                                 split_of)

# What can be asked with options: how to find the right choice in the teacher's answer, its subject,
# grade and lecture.
NATURAL, SOCIAL, LANGUAGE = "natural science", "social science", "language science"
PROBLEMS = {
    "color": (r"is (\w+)\.$", NATURAL, 1, ""),
    "shape": (r"is an? (\w+)\.$", NATURAL, 2, ""),
    "size": (r"is (\w+)\.$", NATURAL, 3, ""),
    "total": (r"(?:is|are) (\w+) shapes?\.$", NATURAL, 4, ""),
    "count": (r"There (?:is|are) (\w+) ", NATURAL, 5, ""),
    "exists": (r"^(Yes|No),", NATURAL, 6, ""),
    "position": (r"is (at the [\w-]+)\.$", SOCIAL, 7, ""),
    "relation": (r" is (to the left of|to the right of|above|below) ", SOCIAL, 8, ""),
    "nearest": (r"nearest to it is the (.+?) at", SOCIAL, 9,
                "The nearest shape is the closest one."),
    "remove": (r"so (\w+) shapes? would", NATURAL, 10, "What is taken away is not left."),
    "most": (r"answer is (\w+)\.$", NATURAL, 11,
             "The most common one is there more than any other."),
}
CHOICES = (tuple(COLORS), SHAPES, tuple(SIZES), NUMBERS,
           tuple(f"at the {place}" for place in PLACES), ("Yes", "No"),
           ("to the left of", "to the right of"), ("above", "below"))
WORDS = {"color": tuple(COLORS), "shape": SHAPES, "size": tuple(SIZES), "number": NUMBERS[1:]}
LOOKS = {"circle": "is round", "star": "has five points", "square": "has four corners",
         "triangle": "has three corners"}


# ---------------------------------------------------------------------------------- on the disk

def make_scienceqa(folder, sizes, seed):
    """Writes problems.json, pid_splits.json, captions.json and images/SPLIT/ID/image.png.

    sizes: how many problems of each split, {"train": 20000, ...}. Those of val and test are held
    out from train, and so are the questions without a scene, each with its options.
    """
    folder = Path(folder)
    problems, splits, captions = {}, {}, {}
    for split, size in sizes.items():
        rng = random.Random(f"{seed} {split}")
        splits[split] = []
        for _ in range(size):
            problem, scene = make_problem(rng, "train" if split == "train" else "val")
            number = str(len(problems) + 1)
            if scene:
                picture = folder / "images" / split / number / "image.png"
                picture.parent.mkdir(parents=True, exist_ok=True)
                draw(scene, rng).save(picture, compress_level=1)
                # the fourth caption: "a picture of ..."
                captions[number] = captions_of(as_fractions(scene), rng)[3] + "."
            problems[number] = problem | {"image": "image.png" if scene else None, "split": split}
            splits[split].append(number)

    files = {"problems": problems, "pid_splits": splits, "captions": {"captions": captions}}
    for name, content in files.items():
        write(folder / f"{name}.json", json.dumps(content, indent=1))


# --------------------------------------------------------------------------------- one problem

def make_problem(rng, split):
    """-> (a problem of ScienceQA, the scene of its picture or None), in a split of `split_of`."""
    source = rng.choices(("picture", "text", "words"), (60, 25, 15))[0]
    while True:
        scene = make_scene(rng, split)
        kind = rng.choice(list(PROBLEMS))
        asked = ask_words(rng) if source == "words" else ask_scene(source, kind, scene, rng)
        if not asked:
            continue
        others = [choice for choice in asked.pop("others") if choice != asked["key"]]
        if not others:
            continue
        choices = rng.sample(others, min(len(others), rng.choice((2, 3, 4, 4)))) + [asked["key"]]
        rng.shuffle(choices)
        if source == "words" and split_of([asked["question"], *choices]) != split:
            continue
        shown = scene if source == "picture" else None
        return as_problem(asked, choices, source, kind, shown), shown


def as_problem(asked, choices, source, kind, scene):
    """In ScienceQA's words; the solution is what the miniature learns to say before it chooses.

    It tells what is to be seen, the question once more, the answer, its letter: each step looks up
    what stands before it, as in the chats that the language model knows. Without the question
    again, counting stayed at one in two.
    """
    right = choices.index(asked["key"])
    solution = (f"{asked['question']} {asked['answer']} "
                f"Among the options, {asked['key']} is ({'ABCDE'[right]}).")
    if scene:
        things = read(as_fractions(scene))
        seen = join([f"at the {t.place} {with_article(str(t))}" for t in things])
        solution = f"The image shows {seen}. {solution}"
    return {"question": asked["question"], "choices": choices, "answer": right,
            "hint": asked["hint"], "task": "closed choice", "grade": f"grade{asked['grade']}",
            "subject": asked["subject"], "topic": "words" if source == "words" else kind,
            "category": source, "skill": f"{source} {kind}", "lecture": asked["lecture"],
            "solution": solution}


def ask_scene(source, kind, scene, rng):
    """A question about a scene, or None where it leaves nothing to choose: "There is no circle"."""
    boxes = as_fractions(scene)
    things = read(boxes)
    hint = ""
    pattern, subject, grade, lecture = PROBLEMS[kind]

    if source == "picture" and kind in WORDS and rng.random() < 0.6:
        hint, pair = hint_and_question(kind, rng.choice(things))
    else:
        pair = QUESTIONS[kind](things, rng)
    found = pair and re.search(pattern, pair[1])
    if not found:
        return None

    question, answer = pair
    key = found[1]
    if source == "text":
        if "image" in question or "picture" in question:
            return None
        # one of the two captions that tell everything
        hint = captions_of(boxes, rng)[rng.randrange(2)] + "."
        subject = LANGUAGE if subject == NATURAL else subject
    scene_names = sorted({str(thing) for thing in things})
    others = next((pool for pool in CHOICES if key in pool), scene_names)
    return dict(question=question, answer=answer, key=key, others=others, hint=hint,
                subject=subject, grade=grade, lecture=lecture)


def hint_and_question(kind, thing):
    """-> where to look, (question, answer); kind: "color", "shape" or "size"."""
    value = getattr(thing, kind)
    value = with_article(value) if kind == "shape" else value
    return (f"Look at the shape at the {thing.place}.",
            (f"Which {kind} does it have?", f"The shape at the {thing.place} is {value}."))


def ask_words(rng):
    """A question about words and numbers."""
    low, high = sorted(rng.sample(range(1, 6), 2))
    few, many, difference = NUMBERS[low], NUMBERS[high], NUMBERS[high - low]
    of, other = rng.sample(list(WORDS), 2)
    word = rng.choice(WORDS[of])
    shape = rng.choice(SHAPES)
    question, answer, key, others = rng.choice([
        (f"Which of these is a {of}?", f"The {of} is {word}.", word, WORDS[other]),
        (f"Which shape {LOOKS[shape]}?", f"The {shape} {LOOKS[shape]}.", shape, SHAPES),
        (f"What is {many} minus {few}?", f"The answer is {difference}.", difference, NUMBERS[1:]),
        (f"Which is more, {few} or {many}?", f"The answer is {many}.", many, (few,)),
    ])
    return dict(question=question, answer=answer, key=key, others=others, hint="",
                subject=LANGUAGE, grade=rng.randint(1, 12), lecture="")
