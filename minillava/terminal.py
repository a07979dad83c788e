"""The terminal: text from outside is shown and never obeyed."""
import sys
import unicodedata

OBEYED = {"Cc", "Cs", "Zl", "Zp"}  # controls, halves of surrogate pairs, separators of lines and paragraphs
TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # they turn the order of what follows


def printable(text, keep="\n\t"):
    r"""Text from outside, safe to print: what a terminal would obey is shown, "\x1b[2J" as `\x1b[2J`.

    keep: control characters that stay; keep="" makes one line of it, as an error or a file name should be.
    """
    return "".join(c if c in keep or not is_obeyed(c) else escaped(c) for c in str(text))


def is_obeyed(character):
    return unicodedata.category(character) in OBEYED or unicodedata.bidirectional(character) in TURNING


def escaped(character):
    return character.encode("unicode_escape").decode()


def exit_with(error, code=2):
    """Ends the program with one line on standard error that says what is wrong; 2: the user's input is."""
    print(f"error: {printable(error, keep='')}", file=sys.stderr)
    sys.exit(code)
