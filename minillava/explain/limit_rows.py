"""The limits, a function each: it yields the names of a table's columns, then its rows.

count: questions to a cell. A share is a float from 0 to 1. What is asked and what is right follow
from the scene alone, as in the questions that the miniature learned from.
"""
import copy
import math
from collections import Counter
from dataclasses import replace
from itertools import islice

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from minillava.conversation import human_turn, render
from minillava.evaluation.scores import binary_scores, pope_says_yes
from minillava.generate import Answer, new_cache, next_tokens, sample_token, to_pixels
from minillava.llava import IMAGE_TOKEN
from minillava.toy.annotations import NAMES, as_fractions
from minillava.toy.miniature import answers_to
from minillava.toy.objects import read, with_article
from minillava.toy.questions import CONVERSATION
from minillava.toy.world import COLORS, NUMBERS, SHAPES, SIDE, draw, make_box, make_scene


# ------------------------------------------------------------------------------------ the limits

def small_shapes(model, tokenizer, count, rng):
    """An object smaller than a patch

    A patch of 16 x 16 pixels becomes one vector. What fills little of the patch is little of the
    vector: the shape is lost first, then the colour. (Training had shapes of 15 to 28 pixels.)
    """
    yield "pixels", "patches it fills", "colour right", "shape right"
    for side in (26, 17, 12, 8, 5, 3):
        scenes, things = [], []
        for _ in range(count):
            name = any_name(rng)
            box = make_box(rng.randrange(9), rng, side)
            scenes.append(draw([(name, box)], rng))
            things += read(as_fractions([(name, box)]))
        what_color = [f"What color is the shape at the {t.place}?" for t in things]
        what_shape = [f"What shape is at the {t.place}?" for t in things]
        colors = [f"The shape at the {t.place} is {t.color}." for t in things]
        shapes = [f"The shape at the {t.place} is {with_article(t.shape)}." for t in things]
        yield (f"{side} x {side}", f"{side * side / 256:.2f}",
               share(ask(model, tokenizer, what_color, scenes), colors),
               share(ask(model, tokenizer, what_shape, scenes), shapes))


def between_places(model, tokenizer, count, rng):
    """An object where no training picture had one

    In training each shape stood within 4 pixels of the middle of its place. A transformer cannot
    move its eyes: what it knows of a place, it has learned at that place.
    """
    yield "off the middle", "seen"
    for off in (0, 4, 8, 12, 16):
        scenes, questions = [], []
        for _ in range(count):
            name = any_name(rng)
            # The middle of the picture is that of a place; 16 pixels on, two places meet.
            x, y = (SIDE // 2 + rng.choice((-off, off)) for _ in range(2))
            scenes.append(draw([(name, [x - 8, y - 8, x + 8, y + 8])], rng))
            questions.append(is_there(name))
        yield f"{off} pixels", yes_share(ask(model, tokenizer, questions, scenes))


def counting(model, tokenizer, count, rng):
    """Counting beyond the training range

    No training scene had more than five shapes, and no answer a larger number.
    """
    yield "shapes", "right", "said most often", "so often"
    numbers = (*NUMBERS[1:], "six", "seven", "eight", "nine")
    for number, word in enumerate(numbers, 1):
        scenes = []
        for _ in range(count):
            places = rng.sample(range(9), number)
            scenes.append(draw_at(places, [any_name(rng) for _ in places], rng))
        right = "There is one shape." if number == 1 else f"There are {word} shapes."
        answers = ask(model, tokenizer, ["How many shapes are there?"] * count, scenes)
        often, times = Counter(answers).most_common(1)[0]
        yield word, share(answers, [right] * count), often, times / count


def bag_of_patches(model, tokenizer, count, rng):
    """A bag of patches: the red of one thing with the shape of another

    The paper's LLaVA said yes to strawberry yogurt where strawberries and yogurt stood apart. Here
    it is a red circle, where a red square and a blue circle are. The miniature was asked such
    questions in training (ask_exists in toy/questions.py), and answers them well.
    """
    yield "shapes", "yes: it is there", "yes: no such colour", "yes: mixed of two"
    for number in (2, 3, 4, 5):
        scenes, there, mixed, absent = [], [], [], []
        for _ in range(count):
            colors = rng.sample(list(COLORS), number)
            shapes = [rng.choice(SHAPES) for _ in colors]
            shapes[:2] = rng.sample(SHAPES, 2)
            places = rng.sample(range(9), number)
            names = [f"{c} {s}" for c, s in zip(colors, shapes)]
            scenes.append(draw_at(places, names, rng))
            other_color = rng.choice([c for c in COLORS if c not in colors])
            there.append(is_there(names[0]))
            mixed.append(is_there(f"{colors[0]} {shapes[1]}"))
            absent.append(is_there(f"{other_color} {shapes[1]}"))
        said = [ask(model, tokenizer, asked, scenes) for asked in (there, absent, mixed)]
        yield str(number), *map(yes_share, said)


def wording(model, tokenizer, count, rng):
    """Hallucination from the wording of the question

    The same things are asked for in five forms; "no" turns the right answer round. Half of the
    things are there. F1 and the share of yes are computed as by POPE.
    """
    yield "question", "right", "F1", "yes"
    forms = {"Is there {}?": False, "Do you see {} in the image?": False,
             "Is there no {}?": True, "There is {}, right?": False, "Where is the {}?": False}
    scenes, things, present = [], [], []
    for n in range(2 * count):
        scene = make_scene(rng, "val")
        names = [name for name, _ in scene]
        absent = [name for name in NAMES if name not in names]
        scenes.append(draw(scene, rng))
        things.append(rng.choice(names if n % 2 else absent))
        present.append(bool(n % 2))

    for form, denied in forms.items():
        bare = denied or "the {}" in form
        questions = [form.format(t if bare else with_article(t)) for t in things]
        answers = ask(model, tokenizer, questions, scenes)
        labels = ["yes" if there != denied else "no" for there in present]
        scores = binary_scores([({"text": a}, label) for a, label in zip(answers, labels)])
        yield form.format("..."), scores["accuracy"], scores["F1"], scores["yes"]


def resolution(model, tokenizer, count, rng):
    """Another resolution than the trained one

    The tower's positions are a table of 6 x 6. Stretched to a finer grid, as is done for other
    towers, it runs; but nothing was trained on patches that each hold so little.
    """
    yield "pixels", "image tokens", "right"
    scenes, questions, right = asked_scenes(count, rng, list(CONVERSATION))
    for side in (96, 112, 128, 192):
        finer = at_resolution(model, side)
        answers = ask(finer, tokenizer, questions, scenes)
        yield f"{side} x {side}", finer.config.image_tokens, share(answers, right)


def at_resolution(model, side):
    """A copy for pictures of `side` pixels: its table of positions is stretched over the grid."""
    model = copy.deepcopy(model)
    vision = replace(model.config.vision_config, image_size=side)
    model.config = replace(model.config, vision_config=vision)

    # The class token's position stays, those of the patches are a picture of D channels.
    positions = model.vision_tower.embeddings.position_embedding
    table = positions.weight[1:].T                                          # [D,N]
    grid = math.isqrt(table.shape[1])
    table = table.reshape(1, -1, grid, grid)
    size = side // vision.patch_size
    finer = F.interpolate(table, (size, size), mode="bicubic", align_corners=False)
    finer = finer.flatten(2)[0].T                                           # [finer N,D]
    positions.weight = nn.Parameter(torch.cat([positions.weight[:1], finer]).detach())
    return model


def shrunk(model, tokenizer, count, rng):
    """A large picture, shrunk to the resolution of the tower

    A picture of any size is shrunk to what the tower takes. Here the same scenes have more and more
    around them: their shapes become small, and stand where none stood in training.
    """
    yield "picture", "the scene keeps", "count right"
    scenes, questions, right = asked_scenes(count, rng, ["total"])
    for side in (96, 128, 192, 288, 384):
        answers = ask(model, tokenizer, questions, [in_the_middle(scene, side) for scene in scenes])
        yield f"{side} x {side}", f"{SIDE * SIDE // side} pixels", share(answers, right)


def in_the_middle(scene, side):
    """The scene within a larger picture, of the colour of its corner."""
    picture = Image.new("RGB", (side, side), scene.getpixel((0, 0)))
    start = (side - scene.width) // 2
    picture.paste(scene, (start, start))
    return picture


def two_pictures(model, tokenizer, count, rng):
    """Two pictures in one prompt

    LLaVA was trained on one picture a conversation. Two fit into the ids, and the model runs; but
    nothing in training said which of them is asked about, or that there could be two.
    """
    yield "right about", "share"
    answers = Counter()
    for _ in range(count):
        [scene], [question], [right] = asked_scenes(1, rng, ["total"])
        other_right = right
        while other_right == right:  # of another number of shapes, so that an answer tells which
            [other_scene], _, [other_right] = asked_scenes(1, rng, ["total"])
        alone = ask_about(model, tokenizer, question, [scene])
        both = ask_about(model, tokenizer, question, [scene, other_scene])
        answers["the first, alone"] += alone == right
        answers["of two: the first"] += both == right
        answers["of two: the second"] += both == other_right
        answers["of two: neither"] += both not in (right, other_right)
    for name, n in answers.items():
        yield name, n / count


@torch.inference_mode()
def ask_about(model, tokenizer, question, pictures):
    """`generate` for one question about several pictures, side by side in the prompt."""
    turns = [human_turn(question, image=True), ("gpt", None)]
    ids, _ = render(turns, tokenizer, model.config.template, model.config.image_tokens)
    start = ids.index(IMAGE_TOKEN)
    more = [IMAGE_TOKEN] * model.config.image_tokens * (len(pictures) - 1)
    input_ids = torch.tensor([ids[:start] + more + ids[start:]], device=model.device)

    answer = Answer(tokenizer, model.config.template)
    pixels = to_pixels(model, pictures)
    steps = next_tokens(model, input_ids, pixels, new_cache(model), sample_token)
    for token in islice(steps, 32):
        answer.put(token.item())
        if answer.done:
            break
    answer.end()
    return answer.text.strip()


# --------------------------------------------------------------------------------- what they share

def any_name(rng):
    return f"{rng.choice(list(COLORS))} {rng.choice(SHAPES)}"


def draw_at(places, names, rng):
    scene = [(name, make_box(place, rng)) for name, place in zip(names, places)]
    return draw(scene, rng)


def asked_scenes(count, rng, kinds):
    """Held-out scenes, a question of `kinds` about each -> pictures, questions, answers."""
    pictures, questions, answers = [], [], []
    while len(pictures) < count:
        scene = make_scene(rng, "val")
        pair = CONVERSATION[rng.choice(kinds)](read(as_fractions(scene)), rng)
        if pair:
            pictures.append(draw(scene, rng))
            questions.append(pair[0])
            answers.append(pair[1])
    return pictures, questions, answers


def ask(model, tokenizer, questions, pictures):
    questions = [{"question": question} for question in questions]
    return answers_to(model, tokenizer, questions, pictures, batch=50, max_new_tokens=32)


def is_there(name):
    return f"Is there {with_article(name)}?"


def share(answers, right):
    return sum(a == r for a, r in zip(answers, right)) / len(right)


def yes_share(answers):
    return sum(map(pope_says_yes, answers)) / len(answers)
