"""The synthetic world of the miniature: its scenes and their pictures.

A scene is 1 to 5 coloured shapes on a background that varies: 6 colours x 4 shapes x 2 sizes,
each somewhere inside its own cell of a 3 x 3 layout. It is a list of (category, box):

    [("red circle", [8, 7, 24, 23]), ("blue star", [35, 36, 61, 62])]     # pixels of 96 x 96

The other files of this room write scenes down as COCO does (annotations.py), ask questions about
them (questions.py) and make the paper's instruction data (teacher.py, instruct.py).

**Train and held-out scenes never share a combination**, the group of coloured shapes in a scene
whatever their sizes and places: a red circle with two blue stars is either always in training or
never (`split_of`).
"""
import math
import zlib

from PIL import Image, ImageDraw

COLORS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 220),
          "yellow": (240, 210, 40), "purple": (150, 60, 180), "orange": (245, 130, 30)}
SHAPES = ("circle", "square", "triangle", "star")
SIZES = {"small": (15, 18), "large": (25, 28)}  # width and height of a box in pixels, from and to
PLACES = ("top-left", "top-middle", "top-right",
          "middle-left", "center", "middle-right",
          "bottom-left", "bottom-middle", "bottom-right")
NUMBERS = ("no", "one", "two", "three", "four", "five")
COUNTS = (1, 2, 3, 3, 4, 4, 4, 5, 5, 5)  # of shapes in a scene, one drawn: rather many than few
SIDE = 96         # of a picture, in pixels
CELL = SIDE // 3  # of the layout
SMOOTH = 2        # pictures are drawn this many times larger and shrunk, for smooth edges


# -------------------------------------------------------------------------------------- scenes

def split_of(categories):
    """'val' for one group of coloured shapes in ten, by its own hash, else 'train'."""
    group = ",".join(sorted(categories))
    return "val" if zlib.crc32(group.encode()) % 10 == 0 else "train"


def make_scene(rng, split):
    """-> [(category, box)] of the split, as above."""
    while True:
        colors = two_or_all(list(COLORS), rng)
        shapes = two_or_all(SHAPES, rng)
        places = rng.sample(range(9), rng.choice(COUNTS))
        names = [f"{rng.choice(colors)} {rng.choice(shapes)}" for _ in places]
        if split_of(names) == split:
            return [(name, make_box(place, rng)) for name, place in zip(names, places)]


def two_or_all(values, rng):
    """What a scene may take its values from: with few to take from, some are there twice."""
    return rng.sample(values, rng.choice((2, len(values))))


def make_box(place, rng, width=None):
    """A square box, up to 4 pixels off the middle of a cell, 0 to 8 in reading order.

    width: in pixels, 30 at most; None: that of either size.
    """
    if width is None:
        width = rng.randint(*SIZES[rng.choice(list(SIZES))])
    room = (CELL - width) // 2
    off = min(4, room - 1)
    x = CELL * (place % 3) + room + rng.randint(-off, off)
    y = CELL * (place // 3) + room + rng.randint(-off, off)
    return [x, y, x + width, y + width]


def place_of(box):
    """The cell, 0 to 8, that the middle of a box in pixels lies in."""
    x1, y1, x2, y2 = box
    column = int((x1 + x2) / 2 * 3 / SIDE)
    row = int((y1 + y2) / 2 * 3 / SIDE)
    return 3 * row + column


# ------------------------------------------------------------------------------------ pictures

def draw(scene, rng):
    """A scene -> an RGB picture; background and shades vary and are nowhere written down."""
    image = background(rng)
    pen = ImageDraw.Draw(image)
    for name, box in scene:
        color, shape = name.split()
        fill = tuple(shifted(value, rng.randint(-15, 15)) for value in COLORS[color])
        draw_shape(pen, shape, [SMOOTH * v for v in box], fill)
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def background(rng):
    """Two near shades of grey, both light or both dark, one running into the other."""
    low, high = sorted((rng.randint(0, 60), rng.randint(0, 60)))
    light = rng.random() < 0.5
    greys = [rng.randint(low, high), rng.randint(low, high)]
    if light:
        greys = [255 - grey for grey in greys]

    size = (SMOOTH * SIDE, SMOOTH * SIDE)
    ramp = Image.linear_gradient("L").resize(size).rotate(rng.choice((0, 90, 180, 270)))
    one, other = (Image.new("RGB", size, (grey, grey, grey)) for grey in greys)
    return Image.composite(one, other, ramp)


def shifted(value, by):
    """A colour value, moved within 0 to 255."""
    return min(255, max(0, value + by))


def draw_shape(pen, shape, box, fill):
    x1, y1, x2, y2 = box
    if shape == "circle":
        pen.ellipse(box, fill)
    elif shape == "square":
        pen.rectangle(box, fill)
    elif shape == "triangle":
        pen.polygon([((x1 + x2) / 2, y1), (x2, y2), (x1, y2)], fill)
    else:
        pen.polygon(star_corners(box), fill)


def star_corners(box):
    """Ten corners around the middle of the box: a point, a notch, a point, ..."""
    x1, y1, x2, y2 = box
    radius = (x2 - x1) / 2
    center_x, center_y = (x1 + x2) / 2, (y1 + y2) / 2
    corners = []
    for k in range(10):
        reach = radius if k % 2 == 0 else 0.4 * radius
        angle = k * math.pi / 5
        corners.append((center_x + reach * math.sin(angle), center_y - reach * math.cos(angle)))
    return corners
