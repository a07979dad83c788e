"""A run is a folder: what was asked for, what was measured at every step, and a picture of the loss."""
import json
import math
import shlex
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from minillava.files import write


def git_state():
    """The commit this runs from, with "+" if files were changed since; None outside a repository."""
    here = Path(__file__).parent
    try:
        commit, changed = (subprocess.run(["git", "-C", here, *command], capture_output=True, text=True, check=True).stdout
                           for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]))
        return commit.strip() + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return None


def begin(folder, recipe, settings):
    """Makes the folder and its config.json: the command, the recipe and all settings, as JSON."""
    config = {"command": shlex.join(sys.argv), "git": git_state(), "recipe": recipe, "settings": settings}
    write(folder / "config.json", json.dumps(config, indent=1, default=str))


def measured(folder):
    """The rows of metrics.jsonl, but for a last one that a killed run left half written."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def rewind(folder, step):
    """Forgets what was measured from `step` on: it will be done again."""
    rows = [row for row in measured(folder) if row["step"] < step]
    write(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def draw_loss(curves, path):
    """The smoothed losses, one after the other on a log scale; curves: [(name, losses)]."""
    W, H, M = 720, 360, 46
    image = Image.new("RGB", (W, H), "white")
    pen, smoothed = ImageDraw.Draw(image), []
    for name, losses in curves:
        smooth, mean = [], losses[0]
        for loss in losses:
            mean = 0.95 * mean + 0.05 * loss
            smooth.append(max(mean, 1e-6))
        smoothed.append((name, smooth))
    low, high = (math.log(pick(pick(curve) for _, curve in smoothed)) for pick in (min, max))
    steps, start = sum(len(curve) for _, curve in smoothed), 0
    for k in range(5):
        y = M + (H - 2 * M) * k / 4
        pen.line((M, y, W - M, y), "#dddddd")
        pen.text((6, y - 6), f"{math.exp(high + (low - high) * k / 4):.3f}", "black")
    for row, ((name, curve), color) in enumerate(zip(smoothed, ("#1f77b4", "#d62728"))):
        points = [(M + (W - 2 * M) * (start + i) / steps,
                   M + (H - 2 * M) * (high - math.log(loss)) / max(high - low, 1e-6)) for i, loss in enumerate(curve)]
        pen.line(points, color, width=2)
        pen.text((W - 240, 8 + 16 * row), f"{name}: {curve[-1]:.3f} after {len(curve)} steps", color)
        start += len(curve)
    pen.text((W // 2 - 40, H - 24), f"{steps} steps", "black")
    image.save(path)
