"""Mini ScienceQA, in the official layout."""
import json
import random
import re
from pathlib import Path

from minillava.toy.annotations import as_fractions
from minillava.toy.objects import a, captions_of, join, read
from minillava.toy.questions import QUESTIONS
from minillava.toy.world import COLORS, NUMBERS, PLACES, SHAPES, SIZES, draw, make_scene, split_of

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
