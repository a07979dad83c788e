"""Pictures that are none of the toy world's scenes, drawn by rule, so that the miniature learns to say so.

    python -c "from minillava.toy import oddities; oddities.sheet('oddities.png')"      # a look at some of each kind

Fifteen kinds: plain and fine patterns, scribbles, marks like writing, and what has the colours and the roughness of
photographs. Photographs themselves are not among them: that they are recognised too is for an evaluation to show.
"""
import math
import random

import numpy as np
from PIL import Image, ImageDraw

from minillava.toy.world import COLORS, SIDE, draw


# ----------------------------------------------------------------------------------------------------- colours and noise

def any_color(rng):
    """Any colour, or a grey, near white or near black, or one of the world's own."""
    kind = rng.random()
    if kind < 0.1:
        return (rng.randrange(256),) * 3
    if kind < 0.2:
        return (rng.choice((rng.randint(0, 40), rng.randint(215, 255), 255)),) * 3
    if kind < 0.4:
        return rng.choice(list(COLORS.values()))
    return tuple(rng.randrange(256) for _ in range(3))


def canvas(rng):
    image = Image.new("RGB", (SIDE, SIDE), any_color(rng))
    return image, ImageDraw.Draw(image)


def random_field(rng, cells):
    """A field [SIDE,SIDE] of numbers from 0 to 1: random at cells x cells points, smooth between them."""
    points = Image.frombytes("L", (cells, cells), rng.randbytes(cells * cells))
    return np.asarray(points.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 255


def fractal_field(rng, finest=48):
    """Fields from coarse to fine, each weaker than the one before: clouds, stone, leaves [SIDE,SIDE]."""
    field, weight, cells, decay = np.zeros((SIDE, SIDE)), 1.0, rng.choice((2, 3, 4)), rng.uniform(0.4, 0.8)
    while cells <= finest:
        field = field + weight * (random_field(rng, cells) - 0.5)
        weight, cells = weight * decay, cells * 2
    field = field - field.min()
    return field / max(field.max(), 1e-9)


def painted(field, colors):
    """A field [SIDE,SIDE] from 0 to 1 -> a picture that runs through the colours."""
    position = np.clip(field, 0, 1) * (len(colors) - 1)
    table, at = np.array(colors, dtype=float), np.minimum(position.astype(int), len(colors) - 2)
    part = (position - at)[..., None]
    pixels = table[at] * (1 - part) + table[at + 1] * part  # [SIDE,SIDE,3]
    return Image.fromarray(pixels.round().astype(np.uint8))


def palette(rng, count):
    """Colours of one light, as a photograph has them: near to one another, more often dull than bright."""
    grey, saturation = rng.randrange(256), rng.choice((0.1, 0.25, 0.5, 1))
    base = [grey + saturation * (rng.randrange(256) - grey) for _ in range(3)]
    spread, tint = rng.randint(20, 130), round(5 + 30 * saturation)
    shifts = [rng.randint(-spread, spread) for _ in range(count)]
    return [tuple(min(255, max(0, round(v + shift + rng.randint(-tint, tint)))) for v in base) for shift in shifts]


def coordinates(rng):
    """x and y [SIDE,SIDE] from -1 to 1, turned by a random angle."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    angle = rng.uniform(0, math.pi)
    return x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)


# -------------------------------------------------------------------------------------------------------------- the kinds

def blank(rng):
    """One colour, or a background of the world with nothing on it."""
    return draw([], rng) if rng.random() < 0.6 else canvas(rng)[0]


def stripes(rng):
    x, _ = coordinates(rng)
    wave = np.sin(x * rng.uniform(4, 50) + rng.uniform(0, 6)) / 2 + 0.5
    return painted(wave.round() if rng.random() < 0.5 else wave, [any_color(rng), any_color(rng)])


def checkers(rng):
    x, y = coordinates(rng) if rng.random() < 0.5 else np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    fine = rng.uniform(1.5, 10)
    board = (np.floor(x * fine) + np.floor(y * fine)) % 2
    return painted(board, [any_color(rng), any_color(rng)])


def noise(rng):
    cells = rng.choice((8, 12, 24, 48, 96))
    mode = rng.choice(("L", "RGB"))
    small = Image.frombytes(mode, (cells, cells), rng.randbytes(cells * cells * len(mode)))
    return small.resize((SIDE, SIDE), rng.choice((Image.Resampling.NEAREST, Image.Resampling.BICUBIC))).convert("RGB")


def gradient(rng):
    corners = Image.new("RGB", (2, 2))
    for at in ((0, 0), (0, 1), (1, 0), (1, 1)):
        corners.putpixel(at, any_color(rng))
    return corners.resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def rings(rng):
    x, y = coordinates(rng)
    radius = np.hypot(x - rng.uniform(-0.6, 0.6), (y - rng.uniform(-0.6, 0.6)) * rng.uniform(0.6, 1.6))
    wave = np.sin(radius * rng.uniform(6, 45)) / 2 + 0.5
    return painted(wave.round() if rng.random() < 0.5 else wave, [any_color(rng), any_color(rng)])


def scribbles(rng):
    image, pen = canvas(rng)
    for _ in range(rng.randint(1, 5)):
        points = [(rng.randrange(SIDE), rng.randrange(SIDE)) for _ in range(rng.randint(2, 14))]
        pen.line(points, any_color(rng), rng.randint(1, 6), "curve")
    return image


def writing(rng):
    """Rows of small marks, as a page of text is from afar."""
    image, pen = canvas(rng)
    ink, high, y = any_color(rng), rng.randint(2, 9), 4
    while y < SIDE - high:
        x = 4
        while x < SIDE - 4:
            wide = rng.randint(1, 2 * high)
            if rng.random() < 0.5:
                pen.rectangle((x, y + rng.randint(0, high // 2), x + wide, y + high - 1), ink)
            else:
                pen.line((x, y + high, x + wide, y), ink, max(1, high // 4))
            x += wide + rng.randint(1, high)
        y += round(high * rng.uniform(1.3, 2))
    return image


def crowd(rng):
    """More shapes than any scene has, and smaller ones."""
    image, pen = canvas(rng)
    for _ in range(rng.randint(9, 70)):
        x, y, r = rng.randrange(SIDE), rng.randrange(SIDE), rng.randint(1, 7)
        kind = rng.randrange(3)
        if kind == 2:
            pen.polygon(((x, y - r), (x + r, y + r), (x - r, y + r)), any_color(rng))
        else:
            (pen.ellipse, pen.rectangle)[kind]((x - r, y - r, x + r, y + r), any_color(rng))
    return image


def polygons(rng):
    """Large things of any form, over one another."""
    image, pen = canvas(rng)
    for _ in range(rng.randint(1, 9)):
        x, y = rng.randrange(SIDE), rng.randrange(SIDE)
        corners = sorted(rng.uniform(0, 2 * math.pi) for _ in range(rng.randint(3, 8)))
        reach = rng.uniform(12, 60)
        points = [(x + reach * rng.uniform(0.5, 1) * math.cos(t), y + reach * rng.uniform(0.5, 1) * math.sin(t))
                  for t in corners]
        pen.polygon(points, any_color(rng))
    return image


def patches(rng):
    """The picture cut in two, and the parts again, each of one colour."""
    image, pen = canvas(rng)
    parts, colors = [(0, 0, SIDE, SIDE)], palette(rng, 12) if rng.random() < 0.5 else None
    for _ in range(rng.randint(2, 20)):
        x1, y1, x2, y2 = parts.pop(rng.randrange(len(parts)))
        cut = rng.uniform(0.2, 0.8)
        if rng.random() < 0.5:
            middle = x1 + cut * (x2 - x1)
            parts += [(x1, y1, middle, y2), (middle, y1, x2, y2)]
        else:
            middle = y1 + cut * (y2 - y1)
            parts += [(x1, y1, x2, middle), (x1, middle, x2, y2)]
    for part in parts:
        pen.rectangle(part, rng.choice(colors) if colors else any_color(rng))
    return image


def blobs(rng):
    """Soft spots of colour that melt into one another."""
    x, y = coordinates(rng)
    pixels = np.full((SIDE, SIDE, 3), any_color(rng), dtype=float)
    for _ in range(rng.randint(1, 9)):
        away = np.hypot(x - rng.uniform(-1, 1), (y - rng.uniform(-1, 1)) * rng.uniform(0.5, 2))
        share = np.exp(-((away / rng.uniform(0.1, 0.6)) ** rng.choice((2, 2, 6))))[..., None]  # soft, or with an edge
        pixels = pixels * (1 - share) + np.array(any_color(rng)) * share
    return Image.fromarray(pixels.round().astype(np.uint8))


def clouds(rng):
    colors = palette(rng, rng.randint(2, 4)) if rng.random() < 0.7 else [any_color(rng), any_color(rng)]
    return painted(fractal_field(rng), colors)


def view(rng):
    """What a photograph is made of: a far and a near part, each with a roughness and a light, and some things before them."""
    pictures = [painted(fractal_field(rng, rng.choice((8, 24, 48, 96))), palette(rng, 3)) for _ in range(2)]
    if rng.random() < 0.3:  # a drawing on a page rather than a photograph
        pictures = [Image.new("RGB", (SIDE, SIDE), color) for color in (rng.choice(("white", "white", any_color(rng))),
                                                                       rng.choice((any_color(rng), palette(rng, 1)[0])))]
    _, y = coordinates(rng)
    horizon = (y + 0.6 * (fractal_field(rng, 12) - 0.5) > rng.uniform(-0.7, 0.7)) * 255
    image = Image.composite(*pictures, Image.fromarray(horizon.astype(np.uint8)))
    for _ in range(rng.randint(0, 6)):
        x, y = coordinates(rng)
        away = np.hypot((x - rng.uniform(-1, 1)) * rng.uniform(0.5, 4), (y - rng.uniform(-1, 1)) * rng.uniform(0.5, 4))
        inside = (away + 0.4 * fractal_field(rng, 12) < rng.uniform(0.2, 0.9)) * 255
        thing = painted(0.5 * fractal_field(rng) + 0.25 * (x + 1), palette(rng, 3))
        image = Image.composite(thing, image, Image.fromarray(inside.astype(np.uint8)))
    return image


def double(rng):
    """One kind shining through another."""
    one, other = (KINDS[rng.choice(list(KINDS)[:-1])](rng) for _ in range(2))
    return Image.blend(one, other, rng.uniform(0.25, 0.75))


KINDS = {kind.__name__: kind for kind in (blank, stripes, checkers, noise, gradient, rings, scribbles, writing, crowd,
                                          polygons, patches, blobs, clouds, view, double)}
SHARES = {name: {"view": 6, "clouds": 2, "double": 3, "blank": 2}.get(name, 1) for name in KINDS}


def draw_odd(rng):
    """-> an RGB picture of SIDE x SIDE pixels of any kind."""
    kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
    return KINDS[kind](rng)


def sheet(path, columns=10, seed=0):
    """Saves a row of pictures of each kind, to look at."""
    rng = random.Random(seed)
    page = Image.new("RGB", (columns * (SIDE + 4), len(KINDS) * (SIDE + 4)), "white")
    for row, kind in enumerate(KINDS.values()):
        for column in range(columns):
            page.paste(kind(rng), (column * (SIDE + 4), row * (SIDE + 4)))
    page.save(path)
