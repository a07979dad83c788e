"""The data that teach the miniature to doubt: what it is measured by stays out, and what is said follows from the scene."""
import json
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from minillava.checkpoint import load_llava
from minillava.toy import chats, follow_ups, oddities, talk
from minillava.toy.annotations import as_fractions
from minillava.toy.instruct import toy_samples
from minillava.toy.objects import read
from minillava.toy.world import SIDE, draw, make_scene

sys.path.insert(0, str(Path(__file__).parent))
import check_small_talk  # noqa: E402

# small red circle at the top-left, large blue star at the center, large red square at the bottom-right
BOXES = [("red circle", [0.03, 0.03, 0.18, 0.18]), ("blue star", [0.37, 0.37, 0.62, 0.62]),
         ("red square", [0.7, 0.7, 0.95, 0.95])]
ROWS = [row for path in check_small_talk.LINES for row in json.loads(path.read_text(encoding="utf-8"))]


def plain(text):
    """Without punctuation, capitals and British spelling: two lines that differ in these alone are the same."""
    return re.sub(r"[^\w ]", "", text.lower().replace("colour", "color")).strip()


def test_the_lines_that_it_is_measured_by_are_never_in_the_data():
    rng, said = random.Random(0), set()
    for _ in range(1500):
        pairs = chats.chat(as_fractions(make_scene(rng, "train")), rng)
        pairs += chats.odd_chat(rng) + chats.text_chat(rng)
        pairs += [talk.line(rng, talk.PICTURED | talk.SOCIAL) for _ in range(20)]
        said.update(plain(question) for question, _ in pairs)
    words = [check_small_talk.a_scene(i)[1] for i in range(3)]
    heldout = {plain(check_small_talk.filled(row["line"], filling)) for row in ROWS if "same_as" not in row
               for filling in words}
    assert len(ROWS) == 80 and not heldout & said


def test_a_dog_is_never_in_the_data(monkeypatch):
    assert not any("dog" in text for text in talk.lines_of("noun"))
    monkeypatch.setattr(talk, "made_up_word", lambda rng: "dog")  # which it may be, once in many thousands
    rng = random.Random(0)
    assert not any("dog" in talk.line(rng, talk.PICTURED | talk.SOCIAL)[0].lower() for _ in range(500))


def test_what_is_not_there_is_asked_about_right_after_a_description():
    rng = random.Random(0)
    doubted = [chats.next_pairs("doubt", read(BOXES), rng) for _ in range(50)]
    assert {told for (_, told), _ in doubted} == {chats.described(read(BOXES), rng)[1]}
    assert {answer for _, (_, answer) in doubted} == {talk.answer_of(group) for group in talk.PICTURED}


def test_no_wording_is_left_unfinished():
    rng = random.Random(0)
    for group, (answer, lines) in talk.groups().items():
        for text in lines:
            for _ in range(5):
                assert not re.search(r"<\w+>|NAME|VALUE|  ", talk.worded(text, rng)), (group, text)


@pytest.mark.parametrize("name, aspect, answers", [
    ("star", "color", {"The star is blue.", "Yes, the star is blue.", "No, the star is blue."}),
    ("blue star", "size", {"The blue star is large.", "Yes, the blue star is large.", "No, the blue star is large."}),
    ("blue shape", "shape", {"The blue shape is a star.", "Yes, the blue shape is a star.", "No, the blue shape is a star."}),
    ("star", "place", {"The star is at the center.", "Yes, the star is at the center.", "No, the star is at the center."}),
])
def test_a_follow_up_is_answered_about_what_was_named(name, aspect, answers):
    rng, star = random.Random(0), read(BOXES)[1]
    pairs = [follow_ups.refer_back(name, aspect, star, rng) for _ in range(300)]
    assert {answer for _, answer in pairs} == answers
    for question, answer in pairs:
        if answer.startswith("Yes"):
            assert getattr(star, aspect) in question
        if answer.startswith("No"):
            assert getattr(star, aspect) not in question


def test_names_in_follow_ups_fit_one_thing_only():
    names = follow_ups.names_of(read(BOXES)[0], read(BOXES))  # the red circle, beside a red square
    assert set(names) == {"shape at the top-left", "circle", "red circle"}
    assert names["red circle"] == ("size", "place")


def test_the_same_question_again_gets_the_same_answer():
    again = 0
    for seed in range(300):
        known = {}
        for question, answer in chats.chat(BOXES, random.Random(seed)):
            if re.search(r"\b(it|its|the (color|size|shape|place)|how big)\b", question, re.I):
                continue  # what these mean depends on what was said before
            key = plain(question).replace("centre", "center")
            again += key in known
            assert known.setdefault(key, answer) == answer
    assert again > 40


def test_whatever_is_asked_about_an_odd_picture_it_is_not_known():
    social = {talk.answer_of(group) for group in talk.SOCIAL}
    for seed in range(200):
        pairs = chats.odd_chat(random.Random(seed))
        assert pairs[0][1] == chats.NO_SCENE and {answer for _, answer in pairs[1:]} <= social | {chats.NO_SCENE}
        assert check_small_talk.says_so(pairs[0][1])


def test_kinds_are_counted_and_descriptions_asked_for_in_other_words_are_the_same():
    things = read(BOXES)
    asked = dict(chats.ask_any(things, random.Random(seed)) for seed in range(300))
    assert asked["Are there any stars?"] == "Yes, there is one star."
    assert asked["Do you see any red shapes?"] == "Yes, there are two red shapes."
    assert asked["Are there triangles in the image?"] == "No, there are no triangles."
    told = [chats.about_scene(things, random.Random(seed)) for seed in range(900)]
    assert len({answer for question, answer in told if question in (*chats.TELL_ME, *chats.DETAIL)}) == 1
    assert set(chats.TELL_ME) <= {question for question, _ in told}


def test_what_an_image_shows_is_not_known_where_there_is_none():
    answers = [pair for seed in range(200) for pair in chats.text_chat(random.Random(seed))]
    unseen = [question for question, answer in answers if answer == chats.NO_IMAGE]
    assert len(unseen) > 20 and not any("There is no" in answer for _, answer in answers)


def test_a_slip_is_one_letter():
    for seed in range(200):
        typed = talk.mistyped("How many shapes are there?", random.Random(seed))
        assert abs(len(typed) - 26) <= 1 and sorted(set(typed) - set("How many shapes are there?")) == []


@pytest.mark.parametrize("kind", oddities.KINDS)
def test_an_odd_picture_is_drawn_by_its_seed_alone(kind):
    one, same, other = (oddities.KINDS[kind](random.Random(seed)) for seed in (3, 3, 4))
    assert one.size == (SIDE, SIDE) and one.mode == "RGB"
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_samples_name_their_pictures_and_text_has_none(tmp_path):
    symbols = {"1.png": ([], BOXES)}
    kinds = {"chat": 2, "odd": 2, "text": 2}
    samples = toy_samples(symbols, kinds, 0, tmp_path)
    assert [sample.get("image") for sample in samples] == ["1.png", "1.png", "odd_000000.png", "odd_000001.png", None, None]
    picture = (tmp_path / "odd_000001.png").read_bytes()
    assert samples == toy_samples(symbols, kinds, 0, tmp_path) != toy_samples(symbols, kinds, 1, tmp_path)
    toy_samples(symbols, {"odd_brief": 2}, 0, tmp_path)  # stage 1 shows the very pictures of stage 2
    assert picture == (tmp_path / "odd_000001.png").read_bytes()


def test_the_scorer_tells_a_fitting_answer_from_one_that_is_not():
    words = {"color": "red", "other_colors": "blue|green"}
    dog = next(row for row in ROWS if row["line"] == "Is there a dog?")
    assert check_small_talk.fits(dog, words, "No, there are only circles, squares, triangles and stars in my world.", [])
    assert not check_small_talk.fits(dog, words, "Yes, there is a blue square.", [])
    assert not check_small_talk.fits(dog, words, "No, there is no dog, only a blue square.", [])
    color = next(row for row in ROWS if row["line"] == "And its colour?")
    assert check_small_talk.fits(color, words, "The star is red.", [])
    assert not check_small_talk.fits(color, words, "The star is red and blue.", [])
    again = next(row for row in ROWS if "same_as" in row)
    assert check_small_talk.fits(again, words, "Two.", ["Two."]) and not check_small_talk.fits(again, words, "Two.", ["Three."])
    assert check_small_talk.says_so("This is no picture of my world.") and not check_small_talk.says_so("There is no circle in the image.")


def test_the_shipped_miniature_knows_what_it_knows():
    model, tokenizer = load_llava(device="cpu", dtype=torch.float32)
    rows = [row for row in ROWS[:40] if row["about"] not in ("who are you", "what can you do")]  # said as one takes it
    assert check_small_talk.score_lines(model, tokenizer, rows, scenes=1, verbose=False) >= len(rows) - 4
    odd = [(check_small_talk.QUESTIONS[0], picture) for _, picture in check_small_talk.no_scenes(60)]
    known = [check_small_talk.says_so(answer) for answer in check_small_talk.ask_all(model, tokenizer, odd, "odd")]
    assert sum(known) >= 54
    rng = random.Random(0)
    scenes = [(check_small_talk.QUESTIONS[1], draw(make_scene(rng, "val"), rng)) for _ in range(60)]
    answers = check_small_talk.ask_all(model, tokenizer, scenes, "scenes")
    assert sum(map(check_small_talk.says_so, answers)) <= 1


def test_the_shipped_miniature_knows_what_is_not_there_right_after_a_description():
    assert not set(check_small_talk.NOUNS) & set(re.findall(r"\w+", " ".join(talk.lines_of("noun"))))
    model, tokenizer = load_llava(device="cpu", dtype=torch.float32)
    doubted = check_small_talk.score_nouns(model, tokenizer, scenes=3)
    assert doubted["dog"] >= 2 and sum(doubted.values()) >= 16
