"""The toy world keeps its promises: honest splits, annotations that fit the pictures, answers that follow from them."""
import json
import random

import numpy as np
import pytest

from minillava.toy import annotations, objects, world
from minillava.toy.annotations import make_world
from minillava.toy.objects import Thing
from minillava.toy.questions import QUESTIONS, heldout_questions
from minillava.toy.world import draw, make_scene, split_of

# red circle small top-left, blue star large center, red square large bottom-right, red circle large bottom-left
BOXES = [("red circle", [0.03, 0.03, 0.18, 0.18]), ("blue star", [0.37, 0.37, 0.62, 0.62]),
         ("red square", [0.7, 0.7, 0.95, 0.95]), ("red circle", [0.03, 0.7, 0.28, 0.95])]
THINGS = objects.read(BOXES)


def answers(kind):
    """{question: answer} of one type about the scene above, all that the teacher can ask."""
    rng = random.Random(0)
    return dict(pair for pair in (QUESTIONS[kind](THINGS, rng) for _ in range(800)) if pair)


@pytest.mark.parametrize("kind, question, answer", [
    ("color", "What color is the star?", "The star is blue."),
    ("color", "What color is the shape at the top-left?", "The shape at the top-left is red."),
    ("color", "What color is the triangle?", "There is no triangle in the image."),
    ("shape", "What shape is at the center?", "The shape at the center is a star."),
    ("size", "How big is the blue star?", "The blue star is large."),
    ("total", "How many shapes are there?", "There are four shapes."),
    ("count", "How many red shapes are there?", "There are three red shapes."),
    ("count", "How many small shapes are there?", "There is one small shape."),
    ("position", "Where is the large red circle?", "The large red circle is at the bottom-left."),
    ("relation", "Is the blue star above or below the red square?", "The blue star is above the red square."),
    ("exists", "Is there a red circle?", "Yes, there is a red circle."),
    ("exists", "Is there a red star?", "No, there is no red star."),
    ("exists", "Is there an orange star?", "No, there is no orange star."),
    ("compare", "Are there more circles or more stars?", "There are two circles and one star, so there are more circles."),
    ("compare", "Are there more stars or more squares?",
     "There is one star and one square, so there are as many of one as of the other."),
    ("remove", "If all red shapes were taken away, how many shapes would be left?",
     "There are four shapes and three red shapes, so one shape would be left."),
    ("most", "Which color is the most common?", "There are three red shapes, more than of any other color, so the answer is red."),
    ("detail", "Describe the image in detail.",
     "The image shows four shapes. There is a small red circle at the top-left. There is a large blue star at the center. "
     "There is a large red circle at the bottom-left. There is a large red square at the bottom-right."),
])
def test_the_teacher_says_what_the_boxes_say(kind, question, answer):
    assert answers(kind)[question] == answer


def test_the_teacher_asks_nothing_that_has_two_answers():
    assert not any("the circle?" in question for question in answers("color"))      # there are two
    assert not any(question.endswith("the red circle?") for question in answers("position"))
    assert not any("nearest to the blue star" in question for question in answers("nearest"))  # three are equally near


def test_train_and_heldout_scenes_never_show_the_same_group_of_coloured_shapes():
    rng = random.Random(0)
    groups = {split: {tuple(sorted(name for name, _ in make_scene(rng, split))) for _ in range(2000)}
              for split in ("train", "val")}
    assert not groups["train"] & groups["val"]
    assert split_of(["red circle", "blue star"]) == split_of(["blue star", "red circle"])


def test_boxes_enclose_what_is_drawn():
    rng = random.Random(1)
    for _ in range(30):
        scene = make_scene(rng, "train")
        pixels = np.asarray(draw(scene, rng)).astype(int)
        colourful = np.ptp(pixels, axis=2) > 60  # the background is grey
        inside = np.zeros_like(colourful)
        for _, (x1, y1, x2, y2) in scene:
            inside[y1 : y2 + 1, x1 : x2 + 1] = True
            assert colourful[y1 : y2 + 1, x1 : x2 + 1].mean() > 0.2
        assert not (colourful & ~inside).any()


def test_a_world_on_disk_is_coco_and_reads_back_as_what_was_drawn(tmp_path):
    make_world(tmp_path, "val", 5, seed=0)
    symbols = annotations.symbols_of(tmp_path, "val")
    rng, captions = random.Random("0 val"), json.loads((tmp_path / "captions_val.json").read_text())
    assert len(captions["annotations"]) == 25 and set(captions["annotations"][0]) == {"id", "image_id", "caption"}
    instance = json.loads((tmp_path / "instances_val.json").read_text())["annotations"][0]
    assert set(instance) == {"id", "image_id", "category_id", "iscrowd", "bbox", "area"}
    first = make_scene(rng, "val")
    texts, boxes = symbols["000000000001.png"]
    assert list(symbols) == [f"{i:012}.png" for i in range(1, 6)] and len(texts) == 5
    assert boxes == [(category, [round(v / world.SIDE, 3) for v in box]) for category, box in first]
    assert str(Thing(*boxes[0])).endswith(first[0][0])


def test_heldout_questions_are_as_many_of_each_type():
    rng = random.Random(0)
    symbols = {f"{i}.png": ([], annotations.as_fractions(make_scene(rng, "val"))) for i in range(20)}
    questions = heldout_questions(symbols, 3, seed=0)
    assert [q["type"] for q in questions] == [kind for kind in QUESTIONS for _ in range(3)]
    alone = {"1.png": ([], annotations.as_fractions([("red circle", [3, 3, 29, 29])]))}
    with pytest.raises(ValueError, match="of 1 scenes there are too few questions of the type .*--heldout"):
        heldout_questions(alone, 3, seed=0)  # nothing can be beside a shape that is alone
