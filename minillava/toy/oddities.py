"""Pictures that are none of the toy world's scenes, drawn by rule: the miniature learns to say so.

    python -c "from minillava.toy import oddities; oddities.sheet('oddities.png')"  # a look at them

Fifteen kinds: plain and fine patterns, scribbles, marks like writing, and what has the colours and
the roughness of photographs. Photographs themselves are not among them: that these are recognised
too is for an evaluation to show.
"""
import math
import random

import numpy as np
from PIL import Image, ImageDraw

from minillava.toy.world import COLORS, SIDE, draw


# ------------------------------------------------------------------------------------- colours

def any_color(rng):
    """Any colour, or a grey, near white or near black, or one of the world's own."""
    kind = rng.random()
    if kind < 0.1:
        return grey(rng.randrange(256))
    if kind < 0.2:
        dark, light = rng.randint(0, 40), rng.randint(215, 255)
        return grey(rng.choice((dark, light, 255)))
    if kind < 0.4:
        return rng.choice(list(COLORS.values()))
    return tuple(rng.randrange(256) for _ in range(3))


def grey(value):
    return value, value, value


def palette(rng, count):
    """Colours of one light, as in a photograph: near one another, more often dull than bright."""
    middle = rng.randrange(256)
    saturation = rng.choice((0.1, 0.25, 0.5, 1))
    base = [middle + saturation * (rng.randrange(256) - middle) for _ in range(3)]
    spread = rng.randint(20, 130)
    tint = round(5 + 30 * saturation)

    colors = []
    for shift in [rng.randint(-spread, spread) for _ in range(count)]:
        values = [round(value + shift + rng.randint(-tint, tint)) for value in base]
        colors.append(tuple(min(255, max(0, value)) for value in values))
    return colors


def painted(field, colors):
    """A field [SIDE,SIDE] from 0 to 1 -> a picture that runs through the colours."""
    table = np.array(colors, dtype=float)              # [colours,3]
    position = np.clip(field, 0, 1) * (len(colors) - 1)
    lower = np.minimum(position.astype(int), len(colors) - 2)
    part = (position - lower)[..., None]               # of the way to the next colour
    pixels = table[lower] * (1 - part) + table[lower + 1] * part  # [SIDE,SIDE,3]
    return as_image(pixels)


def as_image(pixels):
    return Image.fromarray(pixels.round().astype(np.uint8))


def as_mask(field):
    """A field of truths -> what Image.composite takes."""
    return Image.fromarray((field * 255).astype(np.uint8))


# -------------------------------------------------------------------------------------- fields

def coordinates(rng, turned=True):
    """x and y [SIDE,SIDE] from -1 to 1, turned by a random angle or not."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    angle = rng.uniform(0, math.pi) if turned else 0
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos - y * sin, x * sin + y * cos


def random_field(rng, cells):
    """Numbers from 0 to 1 [SIDE,SIDE]: random at cells x cells points, smooth between them."""
    points = Image.frombytes("L", (cells, cells), rng.randbytes(cells * cells))
    return np.asarray(points.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 255


def fractal_field(rng, finest=48):
    """Fields from coarse to fine, each weaker than the last: clouds, stone, leaves [SIDE,SIDE]."""
    cells = rng.choice((2, 3, 4))
    weaker = rng.uniform(0.4, 0.8)
    field = np.zeros((SIDE, SIDE))
    weight = 1.0
    while cells <= finest:
        field = field + weight * (random_field(rng, cells) - 0.5)
        weight *= weaker
        cells *= 2
    field = field - field.min()
    return field / max(field.max(), 1e-9)


def wave_picture(field, rng):
    """The sine of a field in two colours, with soft or hard edges."""
    wave = np.sin(field) / 2 + 0.5
    if rng.random() < 0.5:
        wave = wave.round()
    return painted(wave, [any_color(rng), any_color(rng)])


# ----------------------------------------------------------------------------------- patterns

def canvas(rng):
    image = Image.new("RGB", (SIDE, SIDE), any_color(rng))
    return image, ImageDraw.Draw(image)


def blank(rng):
    """One colour, or a background of the world with nothing on it."""
    if rng.random() < 0.6:
        return draw([], rng)
    return canvas(rng)[0]


def stripes(rng):
    x, _ = coordinates(rng)
    return wave_picture(x * rng.uniform(4, 50) + rng.uniform(0, 6), rng)


def rings(rng):
    x, y = coordinates(rng)
    x = x - rng.uniform(-0.6, 0.6)
    y = (y - rng.uniform(-0.6, 0.6)) * rng.uniform(0.6, 1.6)
    return wave_picture(np.hypot(x, y) * rng.uniform(6, 45), rng)


def checkers(rng):
    x, y = coordinates(rng, turned=rng.random() < 0.5)
    fine = rng.uniform(1.5, 10)
    board = (np.floor(x * fine) + np.floor(y * fine)) % 2
    return painted(board, [any_color(rng), any_color(rng)])


def noise(rng):
    cells = rng.choice((8, 12, 24, 48, 96))
    mode = rng.choice(("L", "RGB"))
    values = rng.randbytes(cells * cells * len(mode))  # a byte or three for each cell
    small = Image.frombytes(mode, (cells, cells), values)
    smooth = rng.choice((Image.Resampling.NEAREST, Image.Resampling.BICUBIC))
    return small.resize((SIDE, SIDE), smooth).convert("RGB")


def gradient(rng):
    corners = Image.new("RGB", (2, 2))
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        corners.putpixel(corner, any_color(rng))
    return corners.resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def patches(rng):
    """The picture cut in two, and the parts again, each of one colour."""
    image, pen = canvas(rng)
    parts = [(0, 0, SIDE, SIDE)]
    colors = palette(rng, 12) if rng.random() < 0.5 else None
    for _ in range(rng.randint(2, 20)):
        part = parts.pop(rng.randrange(len(parts)))
        parts += halves(part, rng)
    for part in parts:
        pen.rectangle(part, rng.choice(colors) if colors else any_color(rng))
    return image


def halves(part, rng):
    x1, y1, x2, y2 = part
    cut = rng.uniform(0.2, 0.8)
    if rng.random() < 0.5:
        x = x1 + cut * (x2 - x1)
        return [(x1, y1, x, y2), (x, y1, x2, y2)]
    y = y1 + cut * (y2 - y1)
    return [(x1, y1, x2, y), (x1, y, x2, y2)]


# ------------------------------------------------------------------------------- drawn by a pen

def scribbles(rng):
    image, pen = canvas(rng)
    for _ in range(rng.randint(1, 5)):
        corners = rng.randint(2, 14)
        points = [(rng.randrange(SIDE), rng.randrange(SIDE)) for _ in range(corners)]
        pen.line(points, any_color(rng), rng.randint(1, 6), "curve")
    return image


def writing(rng):
    """Rows of small marks, as a page of text is from afar."""
    image, pen = canvas(rng)
    ink = any_color(rng)
    high = rng.randint(2, 9)
    y = 4
    while y < SIDE - high:
        x = 4
        while x < SIDE - 4:
            wide = rng.randint(1, 2 * high)
            if rng.random() < 0.5:
                top = y + rng.randint(0, high // 2)
                pen.rectangle((x, top, x + wide, y + high - 1), ink)
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
        kind = rng.choice((pen.ellipse, pen.rectangle, pen.polygon))
        triangle = (x, y - r), (x + r, y + r), (x - r, y + r)
        box = x - r, y - r, x + r, y + r
        kind(triangle if kind == pen.polygon else box, any_color(rng))
    return image


def polygons(rng):
    """Large things of any form, over one another."""
    image, pen = canvas(rng)
    for _ in range(rng.randint(1, 9)):
        x, y = rng.randrange(SIDE), rng.randrange(SIDE)
        angles = sorted(rng.uniform(0, 2 * math.pi) for _ in range(rng.randint(3, 8)))
        reach = rng.uniform(12, 60)
        points = []
        for angle in angles:
            across, down = rng.uniform(0.5, 1), rng.uniform(0.5, 1)
            points.append((x + reach * across * math.cos(angle),
                           y + reach * down * math.sin(angle)))
        pen.polygon(points, any_color(rng))
    return image


# ----------------------------------------------------------------------------- like photographs

def blobs(rng):
    """Spots of colour that melt into one another, or have an edge."""
    x, y = coordinates(rng)
    pixels = np.full((SIDE, SIDE, 3), any_color(rng), dtype=float)
    for _ in range(rng.randint(1, 9)):
        across = x - rng.uniform(-1, 1)
        down = (y - rng.uniform(-1, 1)) * rng.uniform(0.5, 2)
        away = np.hypot(across, down) / rng.uniform(0.1, 0.6)
        share = np.exp(-(away ** rng.choice((2, 2, 6))))[..., None]  # [SIDE,SIDE,1]
        pixels = pixels * (1 - share) + np.array(any_color(rng)) * share
    return as_image(pixels)


def clouds(rng):
    if rng.random() < 0.7:
        colors = palette(rng, rng.randint(2, 4))
    else:
        colors = [any_color(rng), any_color(rng)]
    return painted(fractal_field(rng), colors)


def view(rng):
    """A far and a near part, each with its roughness and light, and some things before them."""
    far, near = rough(rng), rough(rng)
    if rng.random() < 0.3:  # a drawing on a page rather than a photograph
        far, near = page(rng)
    _, y = coordinates(rng)
    horizon = y + 0.6 * (fractal_field(rng, 12) - 0.5) > rng.uniform(-0.7, 0.7)
    image = Image.composite(far, near, as_mask(horizon))
    for _ in range(rng.randint(0, 6)):
        image = with_a_thing(image, rng)
    return image


def rough(rng):
    finest = rng.choice((8, 24, 48, 96))
    return painted(fractal_field(rng, finest), palette(rng, 3))


def page(rng):
    """White paper, or of any colour, and what is drawn on it."""
    paper = rng.choice(("white", "white", any_color(rng)))
    drawn = rng.choice((any_color(rng), palette(rng, 1)[0]))
    return Image.new("RGB", (SIDE, SIDE), paper), Image.new("RGB", (SIDE, SIDE), drawn)


def with_a_thing(image, rng):
    """Something of irregular outline, lit from one side."""
    x, y = coordinates(rng)
    across = (x - rng.uniform(-1, 1)) * rng.uniform(0.5, 4)
    down = (y - rng.uniform(-1, 1)) * rng.uniform(0.5, 4)
    outline = np.hypot(across, down) + 0.4 * fractal_field(rng, 12)
    inside = outline < rng.uniform(0.2, 0.9)
    surface = 0.5 * fractal_field(rng) + 0.25 * (x + 1)
    return Image.composite(painted(surface, palette(rng, 3)), image, as_mask(inside))


# -------------------------------------------------------------------------------- all together

def double(rng):
    """One kind shining through another."""
    singles = [kind for kind in KINDS if kind != "double"]
    one, other = (KINDS[rng.choice(singles)](rng) for _ in range(2))
    return Image.blend(one, other, rng.uniform(0.25, 0.75))


KINDS = {kind.__name__: kind for kind in (
    blank, stripes, checkers, noise, gradient, rings, scribbles, writing, crowd, polygons, patches,
    blobs, clouds, view, double)}
SHARES = dict.fromkeys(KINDS, 1) | {"view": 6, "clouds": 2, "double": 3, "blank": 2}


def draw_odd(rng):
    """-> an RGB picture of SIDE x SIDE pixels of any kind."""
    kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
    return KINDS[kind](rng)


def sheet(path, columns=10, seed=0):
    """Saves a row of pictures of each kind, to look at."""
    rng = random.Random(seed)
    step = SIDE + 4
    page = Image.new("RGB", (columns * step, len(KINDS) * step), "white")
    for row, kind in enumerate(KINDS.values()):
        for column in range(columns):
            page.paste(kind(rng), (column * step, row * step))
    page.save(path)
