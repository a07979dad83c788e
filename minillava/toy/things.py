"""Drawings of what the toy world does not have: five things, each in any colour and place."""
from PIL import Image, ImageDraw

from minillava.toy.world import COLORS, SIDE, SMOOTH, background

# a thing is polygons and ellipses on a square of 10 x 10; True: in a darker shade
THINGS = {
    "house": [("polygon", [(1, 5), (9, 5), (9, 10), (1, 10)], False),
              ("polygon", [(0, 5), (5, 0), (10, 5)], True),
              ("polygon", [(4, 7), (6, 7), (6, 10), (4, 10)], True)],
    "cat": [("ellipse", [(1, 3), (9, 10)], False),
            ("polygon", [(1, 5), (1, 0), (4, 3)], False),
            ("polygon", [(9, 5), (9, 0), (6, 3)], False),
            ("ellipse", [(3, 5), (4, 6.5)], True),
            ("ellipse", [(6, 5), (7, 6.5)], True)],
    "car": [("polygon", [(0, 5), (10, 5), (10, 8), (0, 8)], False),
            ("polygon", [(2, 5), (3, 2), (7, 2), (8, 5)], False),
            ("ellipse", [(1, 6.5), (4, 9.5)], True),
            ("ellipse", [(6, 6.5), (9, 9.5)], True)],
    "tree": [("polygon", [(4, 6), (6, 6), (6, 10), (4, 10)], True),
             ("ellipse", [(1, 2), (6, 7)], False),
             ("ellipse", [(4, 2), (9, 7)], False),
             ("ellipse", [(2.5, 0), (7.5, 5)], False)],
    "boat": [("polygon", [(0, 7), (10, 7), (8, 10), (2, 10)], True),
             ("polygon", [(4.5, 0), (5.5, 0), (5.5, 7), (4.5, 7)], True),
             ("polygon", [(5.5, 0.5), (9.5, 6), (5.5, 6)], False)],
}


def draw_thing(name, rng):
    """-> a picture of SIDE x SIDE, the thing large in it."""
    image = background(rng)
    pen = ImageDraw.Draw(image)
    side = SMOOTH * rng.randint(40, 60)
    x, y = (rng.randint(0, SMOOTH * SIDE - side) for _ in range(2))
    fill = rng.choice(list(COLORS.values()))
    dark = tuple(value // 2 for value in fill)
    for form, points, darker in THINGS[name]:
        placed = [(x + side * px / 10, y + side * py / 10) for px, py in points]
        getattr(pen, form)(placed, dark if darker else fill)
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)
