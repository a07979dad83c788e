"""What LLaVA cannot do, shown on the miniature: each limit that the paper and its readers name.

    python -m minillava.explain.limits                     # all of them, a minute
    python -m minillava.explain.limits counting two-pictures
    python -m minillava.explain.limits --model runs/toy/llava

Each prints a small table: what the model was trained for in the first rows, what it was not below.
Shares are of whole answers, word for word.
"""
import random
import textwrap
from pathlib import Path

from minillava.checkpoint import load_llava
from minillava.explain import limit_rows
from minillava.terminal import command_parser, errors_in_one_line, printable
from minillava.toy.world import SIDE

LIMITS = {
    "small": limit_rows.small_shapes,
    "between": limit_rows.between_places,
    "counting": limit_rows.counting,
    "bag": limit_rows.bag_of_patches,
    "wording": limit_rows.wording,
    "resolution": limit_rows.resolution,
    "shrunk": limit_rows.shrunk,
    "two-pictures": limit_rows.two_pictures,
}


def show(limit, model, tokenizer, count):
    """One limit: what it is, and its table. The docstring's first line is its title."""
    title, _, why = limit.__doc__.partition("\n\n")
    rows = limit(model, tokenizer, count, random.Random(0))
    lines = [[cell(value) for value in row] for row in rows]
    print(f"\n{title}\n")
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  " + "   ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip())
    print("\n" + textwrap.fill(" ".join(why.split()), 96))


def cell(value):
    """A share in %, anything else as it is; a model may have said it."""
    if isinstance(value, float):
        return f"{100 * value:.0f} %"
    return printable(value, keep="")


def main():
    parser = command_parser("explain.limits", __doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(LIMITS)} (all)")
    parser.add_argument("--model", type=Path, help="a miniature (default: the shipped one)")
    parser.add_argument("--count", type=int, default=100, help="questions to a cell of a table")
    args = parser.parse_args()
    with errors_in_one_line():
        unknown = [name for name in args.names if name not in LIMITS]
        if unknown:
            raise ValueError(f"there is no limit {unknown[0]!r}, only {', '.join(LIMITS)}")
        if args.count < 1:
            raise ValueError("--count is 1 or more")
        model, tokenizer = load_llava(args.model, dtype="float32")
        if model.config.vision_config.image_size != SIDE:
            raise ValueError(f"{args.model} is no miniature: these scenes are of {SIDE} pixels")
        for name in args.names or LIMITS:
            show(LIMITS[name], model, tokenizer, args.count)


if __name__ == "__main__":
    main()
