"""Loss curves on top of each other: in characters for a terminal, and as a PNG."""
import math

from minillava.training.loss_picture import COLORS, FLOOR, frame, legend, smoothed

MARKS = "ox+*"
LOWEST = 1e-3  # a loss below is drawn there


def in_characters(curves, columns=60, rows=10):
    """{name: losses} -> lines of text, on a log scale; a point is the mean of a tenth of the steps.

         2.30 |x
              |oxx
         0.41 | ooxxxxxxx
              +----------  o healthy  x labels shifted twice
    """
    drawn = {name: averaged(losses, columns) for name, losses in curves.items()}
    logs = [math.log(loss) for points in drawn.values() for loss in points]
    low, high = min(logs), max(logs)

    cells = [[" "] * columns for _ in range(rows)]
    for points, mark in zip(drawn.values(), MARKS):
        for column, loss in enumerate(points):
            height = (high - math.log(loss)) / max(high - low, FLOOR)
            cells[round(height * (rows - 1))][column] = mark

    lines = []
    for row, line in enumerate(cells):
        scale = {0: high, rows - 1: low}.get(row)
        label = "" if scale is None else f"{math.exp(scale):.3f}"
        lines.append(f"{label:>8} |{''.join(line)}".rstrip())
    names = "  ".join(f"{mark} {name}" for name, mark in zip(drawn, MARKS))
    return [*lines, f"{'':8} +{'-' * columns}", f"{'':10}{names}"]


def averaged(losses, columns):
    """Losses -> `columns` means, each over the steps around one: a batch alone says little."""
    reach = len(losses) // 20
    points = []
    for column in range(columns):
        middle = column * len(losses) // columns
        around = losses[max(0, middle - reach) : middle + reach + 1]
        points.append(max(LOWEST, sum(around) / len(around)))
    return points


def as_picture(curves, path):
    """{name: losses}, smoothed, in one frame on a log scale; at most as many as COLORS."""
    drawn = {name: smoothed(losses) for name, losses in curves.items()}
    values = [loss for curve in drawn.values() for loss in curve]
    image, pen, point = frame([max(loss, LOWEST) for loss in values])

    for row, (name, color) in enumerate(zip(drawn, COLORS)):
        curve = drawn[name]
        line = [point(step / len(curve), max(loss, LOWEST)) for step, loss in enumerate(curve)]
        pen.line(line, color, width=2)
        legend(pen, row, f"{name}: {curve[-1]:.3f} after {len(curve)} steps", color)
    image.save(path)
