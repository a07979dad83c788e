"""What the walk draws: the patch grid, masks, the cache, the words that patches are like."""
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

PAPER = "#fbfbfd"
INK = "#1f2430"
GRID = "#c9ced8"
SEEN = "#3b6ea8"
HIDDEN = "#e8ebf0"
NEW = "#e0a458"


def blank(width, height):
    image = Image.new("RGB", (width, height), PAPER)
    return image, ImageDraw.Draw(image)


def save(image, path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def patch_grid(picture, config, path, side=480):
    """The picture as the model gets it (look.seen_picture), cut as the vision transformer cuts it."""
    picture = picture.resize((side, side))
    pen = ImageDraw.Draw(picture)
    cells = config.vision_config.image_size // config.vision_config.patch_size
    for k in range(1, cells):
        at = side * k / cells
        pen.line((at, 0, at, side), "white")
        pen.line((0, at, side, at), "white")
    save(picture, path)


def matrix(cells, labels, path, cell=26, left=110, top=36):
    """A matrix of booleans: rows are tokens that look, columns those that are looked at."""
    rows, columns = len(cells), len(cells[0])
    image, pen = blank(left + cell * columns + 20, top + cell * rows + 20)
    for y, row in enumerate(cells):
        pen.text((8, top + cell * y + 6), labels[y][:16], INK)
        for x, seen in enumerate(row):
            left_edge, top_edge = left + cell * x, top + cell * y
            square = left_edge, top_edge, left_edge + cell - 2, top_edge + cell - 2
            pen.rectangle(square, SEEN if seen else HIDDEN)
    pen.text((8, 8), "rows look at columns; blue: may", INK)
    save(image, path)


def cache_growth(turns, path, width=720, row=12):
    """What each step ran, orange, beside what it found in the cache, blue.

    turns: for each turn, how many tokens each of its steps ran.
    """
    steps = [tokens for turn in turns for tokens in turn]
    scale = (width - 120) / sum(steps)
    image, pen = blank(width, row * len(steps) + 50)
    pen.text((8, 8), "each row a step; blue: keys and values kept, orange: tokens run", INK)
    past = 0
    y = 32
    for number, turn in enumerate(turns, 1):
        pen.text((8, y), f"turn {number}", INK)
        for tokens in turn:
            start = 80
            middle = 80 + scale * past
            pen.rectangle((start, y, middle, y + row - 3), SEEN)
            pen.rectangle((middle, y, middle + max(2, scale * tokens), y + row - 3), NEW)
            past += tokens
            y += row
    save(image, path)


def words_on_patches(picture, config, columns, path, side=480):
    """The picture once a column, on every patch a word.

    columns: [(title, [a word per patch])]
    """
    cells = config.vision_config.image_size // config.vision_config.patch_size
    font = ImageFont.load_default(max(7, side // cells // 6))
    picture = picture.resize((side, side))
    titled = []
    for title, words in columns:
        dark = Image.blend(picture, Image.new("RGB", picture.size, "black"), 0.45)
        pen = ImageDraw.Draw(dark)
        for k, word in enumerate(words):
            x = side * (k % cells) / cells + 4
            y = side * (k // cells) / cells + 6
            pen.text((x, y), word.replace(" ", "\n"), "white", font)
        titled.append((title, dark))
    side_by_side(titled, path, side)


def side_by_side(titled, path, side=220):
    """[(title, PIL image)] in a row, each under its title."""
    canvas, pen = blank(len(titled) * (side + 12) + 12, side + 44)
    for number, (title, image) in enumerate(titled):
        left = 12 + number * (side + 12)
        pen.text((left, 10), title, INK, ImageFont.load_default(16))
        canvas.paste(image.convert("RGB").resize((side, side), Image.Resampling.NEAREST), (left, 34))
    save(canvas, path)
