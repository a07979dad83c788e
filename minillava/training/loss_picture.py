"""loss.png: the smoothed losses of one or more stages, on a log scale."""
import math

from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 720, 360, 46
COLORS = ("#1f77b4", "#d62728")
KEPT_APART = "#2ca02c"
FLOOR = 1e-6  # a loss of 0 has no logarithm


def draw_loss(curves, path, kept_apart=()):
    """curves: [(name, losses)], drawn one after the other; kept_apart: [(step, loss)], as dots."""
    curves = [(name, smoothed(losses)) for name, losses in curves]
    steps = sum(len(curve) for _, curve in curves)
    values = [loss for _, curve in curves for loss in curve] + [loss for _, loss in kept_apart]
    image, pen, point = frame(values)

    start = 0
    for row, ((name, curve), color) in enumerate(zip(curves, COLORS)):
        line = [point(step / steps, loss) for step, loss in enumerate(curve, start)]
        pen.line(line, color, width=2)
        legend(pen, row, f"{name}: {curve[-1]:.3f} after {len(curve)} steps", color)
        start += len(curve)

    for step, loss in kept_apart:
        x, y = point(step / steps, loss)
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), KEPT_APART)
    if kept_apart:
        best = min(loss for _, loss in kept_apart)
        legend(pen, len(curves), f"kept apart: {best:.3f} at best", KEPT_APART)

    pen.text((WIDTH // 2 - 40, HEIGHT - 24), f"{steps} steps", "black")
    image.save(path)


def frame(values):
    """An empty picture with an axis for these losses -> (image, pen, point).

    point(along, loss): where a loss stands, `along` of the width from the left, on a log scale.
    """
    low, high = math.log(max(min(values), FLOOR)), math.log(max(values))
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    draw_axis(pen, low, high)

    def point(along, loss):
        height = (high - math.log(max(loss, FLOOR))) / max(high - low, FLOOR)
        return (MARGIN + (WIDTH - 2 * MARGIN) * along,
                MARGIN + (HEIGHT - 2 * MARGIN) * height)

    return image, pen, point


def legend(pen, row, text, color):
    pen.text((WIDTH - 240, 8 + 16 * row), text, color)


def smoothed(losses):
    """A running mean over about 20 steps."""
    mean = losses[0]
    curve = []
    for loss in losses:
        mean = 0.95 * mean + 0.05 * loss
        curve.append(max(mean, FLOOR))
    return curve


def draw_axis(pen, low, high):
    for k in range(5):
        y = MARGIN + (HEIGHT - 2 * MARGIN) * k / 4
        pen.line((MARGIN, y, WIDTH - MARGIN, y), "#dddddd")
        pen.text((6, y - 6), f"{math.exp(high + (low - high) * k / 4):.3f}", "black")
