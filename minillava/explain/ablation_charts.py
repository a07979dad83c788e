"""A row of the ablations as a picture: bars with their spread, and how the runs learned."""
import math

from PIL import ImageFont

from minillava.explain.pictures import GRID, INK, blank, save
from minillava.training.loss_picture import smoothed

COLORS = ("#3b6ea8", "#d9822b", "#4f9d5d", "#a0569c", "#8a8f99")
PAPER_BAR = "#d5d9e2"
HEIGHT, PANEL = 330, 400
POINTS = 120  # of a curve: more would not be seen


def row_chart(title, bars, curves, path):
    """bars: [(name, the paper's figure or None, mean, spread or None)], the latter two in %;
    curves: [(heading, "linear" or "log", [a run's [(step, value)]])], in the order of the bars."""
    image, pen = blank(PANEL * (1 + len(curves)) + 60, HEIGHT)
    pen.text((16, 12), title, INK, ImageFont.load_default(15))
    draw_bars(pen, bars)
    for number, (heading, scale, lines) in enumerate(curves):
        draw_lines(pen, PANEL * (number + 1) + 60, heading, scale, lines)
    save(image.quantize(32), path)


def draw_bars(pen, bars, left=180, top=50):
    """The paper's in grey above the miniature's, each to a scale of its own that begins at 0."""
    room = PANEL - left - 20
    height = min(52, (HEIGHT - top - 30) // len(bars))
    most_paper = max((paper or 0) for _, paper, _, _ in bars)
    most = max(mean + (spread or 0) for _, _, mean, spread in bars) or 1
    for number, (name, paper, mean, spread) in enumerate(bars):
        y = top + height * number
        middle = y + 3 * height // 5
        pen.text((16, y + height // 2 - 6), name, COLORS[number])
        if paper:
            end = left + room * paper / most_paper
            pen.rectangle((left, y + 4, end, y + height // 3), PAPER_BAR)
            pen.text((end + 6, y + 1), f"{paper:g}", INK)
        end = left + room * mean / most
        pen.rectangle((left, y + height // 3 + 2, end, y + height - 6), COLORS[number])
        if spread:
            low, high = (left + room * (mean + sign * spread) / most for sign in (-1, 1))
            pen.line((low, middle, high, middle), INK, 2)
            for x in (low, high):
                pen.line((x, middle - 5, x, middle + 5), INK, 2)
            end = high
        pen.text((end + 6, middle - 6), f"{mean:.1f}", INK)
    pen.text((16, HEIGHT - 22), "grey: the paper; colour: the miniature, %, and its deviation "
             "over seeds", INK)


def draw_lines(pen, left, heading, scale, lines):
    """Each line [(x, y)] in the colour of its bar, on common axes."""
    width, top, bottom = PANEL - 60, 60, HEIGHT - 40
    if scale == "log":
        lines = [[(x, math.log10(y)) for x, y in line] for line in lines]
    last = max(x for line in lines for x, _ in line)
    low = min(y for line in lines for _, y in line)
    high = max(y for line in lines for _, y in line)

    def place(x, y):
        up = (y - low) / max(high - low, 1e-6)
        return left + width * x / last, bottom - (bottom - top) * up

    pen.text((left, 36), heading, INK)
    for value in (low, (low + high) / 2, high):
        _, y = place(0, value)
        pen.line((left, y, left + width, y), GRID)
        shown = 10**value if scale == "log" else value
        pen.text((left - 36, y - 6), f"{shown:.2f}", INK)
    for line, color in zip(lines, COLORS):
        pen.line([place(x, y) for x, y in line], color, 2)
    pen.text((left + width - 60, HEIGHT - 22), f"{last} steps", INK)


def loss_line(losses):
    """Losses, a step each -> [(step, smoothed loss)], about POINTS of them."""
    line = list(enumerate(smoothed(losses), 1))
    every = max(1, len(line) // POINTS)
    return line[::every]
