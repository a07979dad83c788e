"""loss.png: the smoothed losses of one or more stages, on a log scale."""
import math

from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 720, 360, 46
COLORS = ("#1f77b4", "#d62728")


def draw_loss(curves, path):
    """curves: [(name, losses)], drawn one after the other."""
    curves = [(name, smoothed(losses)) for name, losses in curves]
    everything = [loss for _, curve in curves for loss in curve]
    low, high = math.log(min(everything)), math.log(max(everything))

    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    draw_axis(pen, low, high)

    start = 0
    for row, ((name, curve), color) in enumerate(zip(curves, COLORS)):
        points = []
        for i, loss in enumerate(curve, start):
            x = MARGIN + (WIDTH - 2 * MARGIN) * i / len(everything)
            height = (high - math.log(loss)) / max(high - low, 1e-6)
            points.append((x, MARGIN + (HEIGHT - 2 * MARGIN) * height))
        pen.line(points, color, width=2)
        text = f"{name}: {curve[-1]:.3f} after {len(curve)} steps"
        pen.text((WIDTH - 240, 8 + 16 * row), text, color)
        start += len(curve)

    pen.text((WIDTH // 2 - 40, HEIGHT - 24), f"{len(everything)} steps", "black")
    image.save(path)


def smoothed(losses):
    """A running mean over about 20 steps."""
    mean, curve = losses[0], []
    for loss in losses:
        mean = 0.95 * mean + 0.05 * loss
        curve.append(max(mean, 1e-6))
    return curve


def draw_axis(pen, low, high):
    for k in range(5):
        y = MARGIN + (HEIGHT - 2 * MARGIN) * k / 4
        pen.line((MARGIN, y, WIDTH - MARGIN, y), "#dddddd")
        pen.text((6, y - 6), f"{math.exp(high + (low - high) * k / 4):.3f}", "black")
