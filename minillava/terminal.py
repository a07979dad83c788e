"""The terminal: text from outside is shown and never obeyed, lines are read, pictures drawn.

What it can do is asked of NO_COLOR, COLORTERM and TERM (no-color.org, termstandard/colors).
"""
import argparse
import atexit
import os
import select
import shlex
import shutil
import sys
import textwrap
import time
import unicodedata
from contextlib import contextmanager
from functools import lru_cache
from glob import escape, glob
from itertools import cycle
from pathlib import Path
from urllib.parse import unquote

import torch
from PIL import Image

# Unicode's categories of controls, half surrogate pairs, separators of lines and paragraphs, and
# the characters that turn the order in which others are shown.
OBEYED = {"Cc", "Cs", "Zl", "Zp"}
TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
TRUE_COLOR = 2**24
# In a TERM of 256 colours or more; ssh takes TERM along, and not COLORTERM.
MANY_COLORS = ("256", "kitty", "ghostty", "alacritty", "wezterm", "foot")
STYLES = {"plain": 0, "bold": 1, "dim": 2, "magenta": 35, "cyan": 36}
CUBE = (0, 95, 135, 175, 215, 255)  # levels of red, green and blue in the palette of 256
GREYS = range(8, 248, 10)           # and its greys
QUOTES = '"""'
PRECEDENCE = 3.0                    # seconds that rank 0 has to say what is wrong


# ------------------------------------------------------------------------------------- text

def printable(text, keep="\n\t"):
    r"""Text from outside, safe to print: what a terminal would obey is shown.

    The one character ESC becomes the four \x1b. keep: control characters that stay; keep="" makes
    one line, as an error or a file name should be.
    """
    shown = []
    for character in str(text):
        if is_obeyed(character) and character not in keep:
            character = character.encode("unicode_escape").decode()
        shown.append(character)
    return "".join(shown)


def is_obeyed(character):
    obeyed = unicodedata.category(character) in OBEYED
    return obeyed or unicodedata.bidirectional(character) in TURNING


def exit_with(error, code=2):
    """Ends the program with one line on standard error; code 2: the user's input is wrong.

    That nobody reads the output any more, as after `| head`, is no error and needs no word.
    """
    if isinstance(error, BrokenPipeError):
        discard_output()
        sys.exit(0)
    print(f"error: {printable(error, keep='')}", file=sys.stderr)
    sys.exit(code)


@contextmanager
def errors_in_one_line(stopped="stopped", rank=0):
    """Around a command: its text is UTF-8, and no error ends it with a traceback.

    Exit code 2: wrong input, or too much for a GPU; 1: a loss that is not finite; 130: Ctrl-C, after
    which `stopped` is said. rank: of this process, where torchrun has started several.
    """
    print_in_utf8()
    try:
        yield
    except (OSError, ValueError, FloatingPointError, torch.OutOfMemoryError) as error:
        if rank > 0:
            # What is wrong for all rank 0 says, and torchrun ends the others before they do too.
            time.sleep(PRECEDENCE)
        exit_with(error, code=1 if isinstance(error, FloatingPointError) else 2)
    except KeyboardInterrupt:
        if rank == 0:
            print(f"\n{stopped}", file=sys.stderr)
        sys.exit(130)


def command_parser(module, description):
    """Of `python -m minillava.MODULE`: the description, a docstring, keeps its lines."""
    return argparse.ArgumentParser(prog=f"python -m minillava.{module}", description=description,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


def print_in_utf8():
    """What is printed is UTF-8 on every platform: in a pipe, Windows would fail at the first 猫.

    A stream that the shell has closed (`<&-`, `>&-`) is None in Python: it becomes an empty one.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode=mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8")
    atexit.register(flush_output)


def flush_output():
    """At the end, before Python does it and calls a closed pipe an error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()


def discard_output():
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def cell_width(character):
    """Columns that a character takes: two for a Chinese one, none for an accent on the last one."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def aligned(rows):
    """Rows of text -> lines: the first column stands to the left, all others to the right."""
    rows = [[printable(cell, keep="") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for name, *values in rows:
        padded = [value.rjust(width) for value, width in zip(values, widths[1:])]
        lines.append("  ".join([name.ljust(widths[0]), *padded]))
    return "\n".join(lines)


class WrappedText:
    """Writes text as it comes, and breaks lines between words before the terminal does within them.

    A word is held back until it is whole. Chinese and Japanese have no spaces: their lines may
    break at each character.
    """

    def __init__(self, columns, start=0):
        """columns: of the terminal, 0 for no breaks; start: where the cursor stands."""
        self.columns = columns
        self.column = start
        self.space = ""   # seen, but not written: a line does not end with it
        self.word = ""    # held back

    def put(self, text):
        for character in printable(text).replace("\t", "    "):
            if character in " \n":
                self.put_word()
                self.space += character
            elif cell_width(character) == 2:
                self.put_word()
                self.word = character
                self.put_word()
            else:
                self.word += character

    def put_word(self):
        """The held word goes out, on the next line if this one has no room for it."""
        if not self.word:
            return
        if "\n" in self.space:
            self.column = 0
        cells = sum(map(cell_width, self.word))
        spaces = len(self.space.rpartition("\n")[2])
        if self.columns and self.column and self.column + spaces + cells > self.columns:
            self.space = "\n"
            self.column = spaces = 0
        print(self.space + self.word, end="", flush=True)
        self.column += spaces + cells
        self.space = ""
        self.word = ""

    def end(self):
        self.put_word()
        print()


def note(text, style="dim", indent=""):
    """A line about the conversation, wrapped at words; `indent` begins what is wrapped."""
    columns = width() or sys.maxsize // 2
    text = printable(text, keep="")
    for line in textwrap.wrap(text, columns, subsequent_indent=indent, break_on_hyphens=False):
        print(styled(line, style))


def show_pieces(texts):
    """Texts that join to one, in turns of two colours; with | between them where there are none."""
    texts = [text.replace("\n", "↵\n") for text in texts]
    wrapped = WrappedText(width())
    if color_depth():
        for text, color in zip(texts, cycle(("cyan", "magenta"))):
            print(f"\033[{STYLES[color]}m", end="")
            wrapped.put(text)
            wrapped.put_word()
            print("\033[0m", end="")
    else:
        wrapped.put("|".join(texts))
    wrapped.end()


def width():
    """Columns, 0 where standard output is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


# ----------------------------------------------------------------------------- colours, pictures

def color_depth():
    """How many colours standard output shows: 2^24, 256 or 0."""
    term = os.environ.get("TERM", "")
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or term == "dumb":
        return 0
    if os.environ.get("COLORTERM") in ("truecolor", "24bit") or "WT_SESSION" in os.environ:
        return TRUE_COLOR  # WT_SESSION: Windows Terminal, which sets no TERM
    return 256 if any(name in term for name in MANY_COLORS) else 0


def styled(text, style):
    """Text in one of STYLES, where the terminal has colours."""
    return f"\033[{STYLES[style]}m{text}\033[0m" if color_depth() else text


def show_picture(image):
    """The picture within the terminal's width and half its height; nothing in a pipe."""
    columns, rows = shutil.get_terminal_size()
    depth = color_depth()
    if depth:
        print(half_blocks(image, columns, rows // 2, depth))
    elif sys.stdout.isatty():
        note(f"[a picture of {image.width} x {image.height}; this terminal has no colours for it]")


def half_blocks(image, columns, rows, depth):
    """A picture as text, two pixels a character: ▀ in the upper one's colour on the lower one's."""
    scale = min(columns / image.width, 2 * rows / image.height)
    width = max(1, round(scale * image.width))
    height = max(2, round(scale * image.height) // 2 * 2)
    pixels = image.convert("RGB").resize((width, height), Image.Resampling.BOX).load()
    lines = []
    for y in range(0, height, 2):
        cells = [two_pixels(pixels[x, y], pixels[x, y + 1], depth) for x in range(width)]
        lines.append("".join(cells) + "\033[0m")
    return "\n".join(lines)


def two_pixels(upper, lower, depth):
    if depth == TRUE_COLOR:
        return "\033[38;2;{};{};{};48;2;{};{};{}m▀".format(*upper, *lower)
    return f"\033[38;5;{palette_index(upper)};48;5;{palette_index(lower)}m▀"


@lru_cache(maxsize=4096)
def palette_index(pixel):
    """The nearest of 256 colours: 16 to 231 are a cube of six levels each, 232 to 255 are greys."""
    levels = [min(range(6), key=lambda i: abs(CUBE[i] - value)) for value in pixel]
    grey = min(range(24), key=lambda i: abs(GREYS[i] - sum(pixel) / 3))

    # Whichever of the two is nearer.
    off_cube = sum((CUBE[i] - value) ** 2 for i, value in zip(levels, pixel))
    off_grey = sum((GREYS[grey] - value) ** 2 for value in pixel)
    if off_grey < off_cube:
        return 232 + grey
    red, green, blue = levels
    return 16 + 36 * red + 6 * green + blue


# ------------------------------------------------------------------------------- reading a line

def edit_lines(commands):
    """Line editing, history, Tab and pasting in `input`, by readline where Python has it.

    commands: words that Tab completes at the start of a line; behind one it completes paths.
    """
    readline = find_readline()
    if readline is None:
        return

    def complete(text, state):
        typed = readline.get_line_buffer()[: readline.get_endidx()]
        return (completions(typed, commands, readline.get_begidx()) + [None])[state]

    readline.set_completer(complete)
    readline.set_completer_delims(" /")
    if is_gnu(readline):
        readline.parse_and_bind("tab: complete")
        # A paste is one message, whatever its lines; a dumb terminal would show what asks for it.
        if os.environ.get("TERM") != "dumb":
            readline.parse_and_bind("set enable-bracketed-paste on")
    else:
        readline.parse_and_bind("bind ^I rl_complete")


def find_readline():
    """The module; None on Windows, whose console edits lines by itself."""
    try:
        import readline
    except ImportError:
        return None
    return readline


def is_gnu(readline):
    """Whether it is GNU's, and not the libedit that some Pythons have in its place."""
    return "libedit" not in (readline.__doc__ or "")


def completions(typed, commands, begin):
    """What the end of a typed line, from `begin` on, may become: a command, a path behind one."""
    command, space, path = typed.partition(" ")
    if not space:
        return [word[begin:] + " " for word in commands if word.startswith(typed)]
    home = os.path.expanduser(path)
    found = [name + "/" * os.path.isdir(name) for name in sorted(glob(escape(home) + "*"))]
    # As typed, with ~ if there was one; readline wants what stands behind the last space or slash.
    names = [path + name[len(home) :] for name in found]
    return [name[begin - len(command) - 1 :] for name in names]


def read_message(prompt):
    """One message from the keyboard; one of several lines stands between three quotes and three.

    EOFError where the user leaves (Ctrl-D), KeyboardInterrupt where the line is given up (Ctrl-C).
    """
    if not sys.stdin.isatty():
        prompt = ""
    try:
        text = (input(prompt) + waiting_lines()).strip()
    except OSError:  # the terminal is gone, and nothing will ever come from it
        raise EOFError from None
    if not text.startswith(QUOTES):
        return text
    lines = [text[len(QUOTES) :]]
    dots = "." * (len(prompt) - 1) + " " if prompt else ""
    while not lines[-1].rstrip().endswith(QUOTES):
        lines.append(input(dots))
    return "\n".join(lines).rstrip()[: -len(QUOTES)].strip()


def waiting_lines():
    """The other lines of a paste, which wait already where readline does not join them."""
    readline = find_readline()
    if not sys.stdin.isatty() or sys.platform == "win32" or readline and is_gnu(readline):
        return ""
    lines = ""
    while select.select([sys.stdin], [], [], 0.05)[0]:
        lines += "\n" + input()
    return lines


def is_dragged_file(text):
    """Whether a line is nothing but the path of a file: it was dragged into the window."""
    begins = text.startswith(("/", "'/", '"/', "~/", "file://"))
    # Not Path.is_file: it raises where a name is too long for a file.
    return begins and os.path.isfile(typed_path(text))


def typed_path(text):
    r"""A path as people type or drag it: bare, with ~, in quotes, `\ ` for a space, file://."""
    if text.lower().startswith(("http://", "https://")):
        raise ValueError("pictures are not fetched from the web: download it, then name the file")
    if text.startswith("file://"):
        text = unquote(text.removeprefix("file://"))
    bare = os.path.expanduser(text)
    if os.path.exists(bare):
        return Path(bare)
    try:
        unquoted = os.path.expanduser(" ".join(shlex.split(text)))
    except ValueError:  # one quote alone: an apostrophe
        unquoted = bare
    return Path(unquoted if os.path.exists(unquoted) else bare)
