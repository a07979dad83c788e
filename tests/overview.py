"""The README's picture of LLaVA: figure 1 of the paper, with shapes.

    python -m minillava.explain.overview --out docs/overview.svg
"""
import base64
import io
import random
from html import escape
from pathlib import Path

from minillava.files import write
from minillava.terminal import command_parser, errors_in_one_line
from minillava.toy import world

WIDTH = 1000
HEIGHT = 470
FROZEN = "#8aa4c8"    # never trained
PROJECTOR = "#e0a458"  # trained in both stages
TRAINED = "#7fb77e"   # trained in stage 2
WORD = "#d9d9e3"
INK = "#1f2430"
FAINT = "#5b6472"


def text(x, y, content, size=15, color=INK, anchor="middle", weight="normal"):
    return (f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" text-anchor="{anchor}" '
            f'font-weight="{weight}">{escape(content)}</text>')


def box(x, y, width, height, color, title, *lines):
    """A part of the model, its name and what it is."""
    parts = [f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{color}"/>']
    top = y + height / 2 + 5 - 9 * len(lines)
    parts.append(text(x + width / 2, top, title, weight="bold"))
    for n, line in enumerate(lines, 1):
        parts.append(text(x + width / 2, top + 18 * n, line, 12.5))
    return "\n".join(parts)


def arrow(x1, y1, x2, y2, shape="", side=10):
    """An arrow, and the shape of the tensor that travels along it."""
    line = f'<path d="M{x1} {y1} L{x2} {y2}" stroke="{FAINT}" stroke-width="2" marker-end="url(#tip)"/>'
    if not shape:
        return line
    if x1 == x2:
        return line + text(x1 + side, (y1 + y2) / 2 + 5, shape, 13, FAINT, "start")
    return line + text((x1 + x2) / 2, y1 - side, shape, 13, FAINT)


def token(x, y, label, color, width):
    return (f'<rect x="{x}" y="{y}" width="{width}" height="28" rx="4" fill="{color}"/>'
            + text(x + width / 2, y + 19, label, 12.5))


def tokens(x, y):
    """The prompt as the decoder sees it: 576 image tokens among the words."""
    words = [("A chat ... USER:", WORD, 128), ("1", PROJECTOR, 24), ("2", PROJECTOR, 24),
             ("...", PROJECTOR, 30), ("576", PROJECTOR, 38), ("Where", WORD, 52), ("is the", WORD, 48),
             ("square", WORD, 54), ("?", WORD, 20), ("ASSISTANT:", WORD, 88)]
    parts = []
    for label, color, width in words:
        parts.append(token(x, y, label, color, width))
        x += width + 4
    return "\n".join(parts)


def scene_png(seed):
    """A held-out scene of the toy world, as a data URL."""
    rng = random.Random(seed)
    image = world.draw(world.make_scene(rng, "val"), rng)
    data = io.BytesIO()
    image.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def legend(x, y):
    rows = [(TRAINED, "trained in stage 2"), (PROJECTOR, "trained from stage 1 on"),
            (FROZEN, "never trained")]
    parts = []
    for n, (color, meaning) in enumerate(rows):
        parts.append(f'<rect x="{x}" y="{y + 22 * n}" width="14" height="14" rx="3" fill="{color}"/>')
        parts.append(text(x + 22, y + 12 + 22 * n, meaning, 13, FAINT, "start"))
    return "\n".join(parts)


def overview(seed=3):
    """The whole picture as SVG, on a card of its own so that it reads on light and dark pages."""
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="Helvetica, Arial, sans-serif">',
        f'<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="6" refY="4" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{FAINT}"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="14" fill="#fbfbfd" stroke="#d9d9e3"/>',
        # from the picture up to the words
        f'<image href="{scene_png(seed)}" x="30" y="322" width="120" height="120"/>',
        arrow(154, 382, 236, 382, "[3, 336, 336]", 12),
        box(240, 342, 220, 80, FROZEN, "CLIP ViT-L/14", "24 × 24 patches, 24 blocks,", "read before the last one"),
        arrow(464, 382, 556, 382, "[576, 1024]", 12),
        box(560, 342, 180, 80, PROJECTOR, "projector", "v1: one matrix", "v1.5: two, GELU between"),
        arrow(650, 338, 650, 300, "[576, 4096]: 576 word embeddings", 12),
        f'<path d="M650 300 L650 290 L404 290 L404 268" fill="none" stroke="{FAINT}" '
        'stroke-width="2" marker-end="url(#tip)"/>',
        # the sequence, the decoder, the answer
        tokens(210, 236),
        arrow(480, 232, 480, 196, "[T, 4096]", 12),
        box(210, 116, 540, 76, TRAINED, "LLaMA / Vicuna", "32 causal blocks: every token looks at itself and at all before it"),
        arrow(480, 112, 480, 78, "[T, 32000]: a score for every word", 12),
        token(210, 44, "The yellow square is at the top-right. </s>", "#ffffff", 540),
        text(766, 63, "the loss looks here alone", 13, FAINT, "start"),
        legend(790, 122), "</svg>", ""])
