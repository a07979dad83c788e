"""The synthetic world of the miniature: scenes, COCO annotations, and a teacher that never sees a picture.

A scene is 1 to 5 coloured shapes on a background that varies: 6 colours x 4 shapes x 2 sizes, each somewhere inside its
own cell of a 3 x 3 layout. It is written down as COCO writes pictures down: five captions each, a category and a box per
object. The teacher gets the captions and boxes alone, as GPT-4 did (LLaVA section 3), and makes the three kinds of
instruction data: conversation, detailed description, complex reasoning.

**Train and held-out scenes never share a combination**, the group of coloured shapes in a scene whatever their sizes and
places: a red circle with two blue stars is either always in training or never (`split_of`).
"""
import math
import zlib

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
