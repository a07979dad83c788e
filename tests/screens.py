"""The screens of the documents: a chat as a person sees it in a terminal, as SVG. tests/make_docs.py writes them.

The chat is typed in a pseudo-terminal. The bytes that come back become rows of cells, as a terminal makes them, and
these become text and rectangles: a ▀ is two squares, the upper in its own colour, the lower in the one behind it.
"""
import re
import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from html import escape
from itertools import groupby
from operator import itemgetter
from xml.etree import ElementTree

from tests.pseudo_terminal import ROOT, PseudoTerminal

COMMAND = "python chat.py --seed 5"  # in each window's title
ROWS = 32                            # of the terminal; a picture takes half of them
SCREENS = {                          # {file: (what it shows, columns, what is typed, how its first line begins)}
    "screen-chat.svg": (
        "A chat about a picture of coloured shapes", 80,
        ["What do you see in the image?", "And how many circles are there?", "Is there a dog?"], "The shipped miniature"),
    "screen-why.svg": (
        "What of the picture an answer needed", 40,
        ["What color is the triangle?", "/why purple"], "you> What"),
    "screen-scene.svg": (
        "The picture is changed and the question asked again", 40,
        ["What color is the triangle?", "/scene triangle to green"], "you> /scene"),
}

CELL = 8             # pixels across a cell, and half of them down
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
FONT_SIZE = 13.3     # whose characters are as wide as a cell
LEAST = 24           # rows of a window
TITLE = 28           # height of the bar above
INK = "#d5dbe3"
DIM = "#8d96a1"
PAPER = "#14181f"
BAR = "#262c36"
EDGE = "#3d4551"


def screen(name):
    """One of SCREENS -> SVG."""
    label, columns, lines, beginning = SCREENS[name]
    rows = rows_of_cells(type_chat(lines, columns, ROWS), columns)
    begins = [text_of(row).startswith(beginning) for row in rows]
    return svg(rows[begins.index(True) :], columns, label)


def type_chat(lines, columns, rows=24):
    """Types these lines in a chat -> the bytes that it wrote, up to the prompt behind the last, as text."""
    with tempfile.TemporaryDirectory() as folder:
        terminal = PseudoTerminal(ROOT / "chat.py", *COMMAND.split()[2:], columns=columns, rows=rows, cwd=folder)
        terminal.read_until("\nyou> ")
        for line in lines:
            terminal.ask(line)
            # After a change of the scene the chat itself asks the last question again.
            if line.startswith("/scene"):
                terminal.read_until("\nyou> ")
        seen = terminal.seen
        terminal.end()
    return seen


# ------------------------------------------------------------------------------- from bytes to cells

@dataclass(frozen=True)
class Style:
    ink: str = INK
    paper: str = PAPER
    weight: str = "normal"


def rows_of_cells(output, columns):
    """What a program wrote -> rows {column: (character, style)}; ValueError for an escape that is not known here."""
    rows = [{}]
    column = 0
    style = Style()
    for parameters, command, character in re.findall(r"\x1b\[([\d;?]*)([A-Za-z])|(.)", output, re.S):
        if command == "m":
            style = changed(style, [int(number or 0) for number in parameters.split(";")])
        elif command:
            if parameters != "?2004":  # pastes are marked: nothing to be seen
                raise ValueError(f"a screen shows nothing of ESC[{parameters}{command} yet")
        elif character == "\r":
            column = 0
        elif character == "\n":
            rows.append({})
        else:
            if column == columns:
                rows.append({})
                column = 0
            rows[-1][column] = character, style
            column += 1
    return rows


def changed(style, numbers):
    """The style after ESC[...m: 38;2;R;G;B is a colour, 48;2;R;G;B one behind the text."""
    if numbers == [0]:
        return Style()
    if numbers == [1]:
        return replace(style, weight="bold")
    if numbers == [2]:
        return replace(style, ink=DIM)
    if len(numbers) == 10 and numbers[:2] == [38, 2] and numbers[5:7] == [48, 2]:
        return replace(style, ink="#%02x%02x%02x" % tuple(numbers[2:5]), paper="#%02x%02x%02x" % tuple(numbers[7:]))
    raise ValueError(f"a screen knows no style {numbers} yet")


# ------------------------------------------------------------------------------- from cells to SVG

def svg(rows, columns, label):
    """A window with these rows, the cursor behind the last; on a card of its own, for light pages and dark."""
    edge = CELL * columns // 40
    width = columns * CELL + 2 * edge
    height = TITLE + edge + max(len(rows), LEAST) * 2 * CELL + edge
    cursor = max(rows[-1], default=-1) + 1
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'xml:space="preserve" role="img" aria-label="{label}" font-family="{FONT}" font-size="{FONT_SIZE}">',
        f"<title>{label}</title>",
        f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="7.5" fill="{PAPER}" stroke="{EDGE}"/>',
        f'<path d="M1 {TITLE}V8a7 7 0 0 1 7-7H{width - 8}a7 7 0 0 1 7 7V{TITLE}z" fill="{BAR}"/>',
        *[f'<circle cx="{16 + 16 * n}" cy="{TITLE / 2}" r="4.5" fill="{EDGE}"/>' for n in range(3)],
        f'<text x="{width / 2}" y="{TITLE / 2 + 4.5}" text-anchor="middle" font-size="12" fill="{DIM}">{COMMAND}</text>',
        f'<g transform="translate({edge} {TITLE + edge})">',
        *squares(rows),
        *[line for y, row in enumerate(rows) for line in texts(y, row)],
        f'<rect x="{cursor * CELL}" y="{(len(rows) - 1) * 2 * CELL + 1}" width="{CELL}" height="{2 * CELL - 2}" fill="{DIM}"/>',
        "</g>", "</svg>", ""])


def squares(rows):
    """Pictures: a path for each colour, and in it a rectangle for each run of squares of that colour."""
    colors = defaultdict(str)  # {colour: path}
    for y, row in enumerate(rows):
        styles = [(column, style) for column, (character, style) in row.items() if character == "▀"]
        for half, side in enumerate(("ink", "paper")):
            blocks = [(column, getattr(style, side)) for column, style in styles]
            for color, run in groupby(blocks, key=itemgetter(1)):
                run = [column for column, _ in run]
                colors[color] += f"M{run[0]} {2 * y + half}h{len(run)}v1h-{len(run)}z"
    paths = [f'<path fill="{color}" d="{path}"/>' for color, path in colors.items()]
    return [f'<g transform="scale({CELL})" shape-rendering="crispEdges">', *paths, "</g>"] if paths else []


def texts(y, row):
    """The text of a row, a piece for each style, as wide as its cells whatever the font."""
    cells = [(column, *cell) for column, cell in row.items() if cell[0] != "▀"]
    pieces = []
    for style, run in groupby(cells, key=itemgetter(2)):
        columns, characters, _ = zip(*run)
        text = "".join(characters).rstrip()
        pieces.append(
            f'<text x="{columns[0] * CELL}" y="{y * 2 * CELL + 12}" textLength="{len(text) * CELL}" '
            f'fill="{style.ink}" font-weight="{style.weight}">{escape(text, quote=False)}</text>')
    return pieces


def text_of(row):
    return "".join(character for character, _ in row.values())


# ------------------------------------------------------------------------------- from SVG back to what it shows

def shown_text(svg):
    """The lines of a screen, without its title."""
    lines = defaultdict(str)  # {y: text}
    for text in ElementTree.fromstring(svg).iterfind("{*}g/{*}text"):
        lines[text.get("y")] += text.text
    return "\n".join(lines.values()) + "\n"


def shown_picture(svg):
    """{(x, y): [red, green, blue]} of its picture's squares, from the picture's top."""
    squares = {}
    for color, path in re.findall(r'<path fill="#(\w{6})" d="([^"]*)"/>', svg):
        for x, y, length in re.findall(r"M(\d+) (\d+)h(\d+)", path):
            for step in range(int(length)):
                squares[int(x) + step, int(y)] = list(bytes.fromhex(color))
    top = min(y for _, y in squares)
    return {(x, y - top): color for (x, y), color in squares.items()}
