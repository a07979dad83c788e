"""POPE of the toy world: does the miniature see things that are not there? (Li et al. 2023.)

    python -m minillava.toy.pope --out runs/pope                       # the shipped miniature
    python -m minillava.toy.pope --model runs/toy/llava --out runs/pope

About each held-out scene as many things are asked for that are there as things that are not. The
latter are drawn at random, or are the most frequent of all (popular), or those that are seen most
often beside the things of this scene (adversarial). Both are counted in the annotated boxes, as
POPE counts in COCO's.
"""
import random
from collections import Counter

from minillava.evaluation.scoring import score
from minillava.files import write_jsonl
from minillava.toy.annotations import ID_OF, make_world, symbols_of
from minillava.toy.bench import evaluate, run_on_scenes
from minillava.toy.objects import with_article

CATEGORIES = ("adversarial", "popular", "random")
PER_SCENE = 3  # things that are there, and as many that are not


def pope(model, scenes, seed, out):
    """Writes questions and labels to `out`, has them answered, and scores the answers."""
    make_world(out, "val", scenes, seed)
    symbols = symbols_of(out, "val")
    things = {name: [category for category, _ in boxes] for name, (_, boxes) in symbols.items()}
    questions, answers, labels = out / "questions.jsonl", out / "answers.jsonl", out / "labels"
    rows = pope_rows(things, random.Random(seed))
    write_jsonl(questions, [without_label(row) for row in rows])
    for category in CATEGORIES:
        write_jsonl(labels / f"toy_pope_{category}.json",
                    [row for row in rows if row["category"] == category])
    answers.unlink(missing_ok=True)

    evaluate("answer", "--questions", questions, "--images", out / "val", "--out", answers,
             "--batch", "60", "--max-new-tokens", "32", *(["--model", model] if model else []))
    print()
    score("pope", answers, questions, labels, title="POPE of the toy world")


def pope_rows(scenes, rng):
    """{image: things in it} -> questions with their labels, half of them "yes", of each kind."""
    frequent = Counter(thing for things in scenes.values() for thing in set(things))
    beside = {thing: Counter() for thing in ID_OF}  # how often each other is seen beside it
    for things in scenes.values():
        for thing in set(things):
            beside[thing].update(set(things) - {thing})

    rows = []
    for category in CATEGORIES:
        for image, things in scenes.items():
            there = rng.sample(sorted(set(things)), min(PER_SCENE, len(set(things))))
            absent = [thing for thing in ID_OF if thing not in things]
            rng.shuffle(absent)  # and what is as frequent as another stays in this order
            if category == "popular":
                absent.sort(key=lambda thing: -frequent[thing])
            elif category == "adversarial":
                absent.sort(key=lambda thing: -sum(beside[seen][thing] for seen in set(things)))
            labels = [(thing, "yes") for thing in there]
            labels += [(thing, "no") for thing in absent[: len(there)]]
            for thing, label in labels:
                rows.append({"question_id": len(rows) + 1, "image": image, "category": category,
                             "text": f"Is there {with_article(thing)}?", "label": label})
    return rows


def without_label(row):
    return {name: value for name, value in row.items() if name != "label"}


def main():
    run_on_scenes(pope, "pope", __doc__, scenes=100)


if __name__ == "__main__":
    main()
