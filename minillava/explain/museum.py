"""The museum of VLM bugs: famous failures, replayed by one small change each to the real pipeline.

    python -m minillava.explain.museum                  # what there is to see
    python -m minillava.explain.museum shifted-twice    # one exhibit: curve, score, answers, thread
    python -m minillava.explain.museum --quiz           # which bug is it? find it from these

An exhibit takes a minute the first time: train.py runs a short stage 2 with the bug in it, and one
without. Bugs of evaluation need none: the shipped miniature is asked. All of it is kept in --out.
"""
import argparse
import inspect
import random
import textwrap
from pathlib import Path

from minillava.explain.curves import as_picture, in_characters
from minillava.explain.exhibits import EXHIBITS
from minillava.explain.museum_runs import Museum
from minillava.terminal import command_parser, errors_in_one_line, note, printable, read_message

CHOICES = 4  # of the quiz, one of them right
SCORES = [("right answers, %", "seen", "all"), ("    colors", "seen", "color"),
          ("    shapes", "seen", "shape"), ("    numbers", "seen", "total"),
          ("without a picture, %", "blind", "all")]


# -------------------------------------------------------------------------------- what is shown

def overview():
    """The list of exhibits."""
    for name, exhibit in EXHIBITS.items():
        print(f"  {name:16}{exhibit.title}")
    print("\nOne of them:   python -m minillava.explain.museum NAME\n"
          "Find the bug:  python -m minillava.explain.museum --quiz")


def visit(museum, name):
    """One exhibit: who met it, the change, what it does, and why it cannot happen here unseen."""
    exhibit = EXHIBITS[name]
    print(f"{exhibit.title}\n{'=' * len(exhibit.title)}")
    paragraph(exhibit.story)
    print(f"  {exhibit.thread}\n\nThe change:\n")
    print(textwrap.indent(inspect.getsource(exhibit.bug), "    "))

    well, ill = museum.compare(name)
    print_symptoms(well, ill, exhibit.title.lower())
    if ill["losses"]:
        path = museum.folder / f"{name}.png"
        as_picture({"healthy": well["losses"], name: ill["losses"]}, path)
        print(f"The curves are in {path}.\n")
    paragraph(f"What gives it away: {exhibit.sign}")
    paragraph(f"Here: {exhibit.here}")


def print_symptoms(well, ill, title):
    """Prints curves, scores and answers of the healthy run and of the one with the bug."""
    curves = {"healthy": well["losses"], title: ill["losses"]}
    if ill["losses"]:
        print("\n".join(in_characters(curves)) + "\n")
    else:
        print("Nothing is trained: the shipped miniature is asked.\n")

    print(f"{'':32}{'healthy':>10}{'with the bug':>14}")
    if ill["losses"]:
        print(f"{'loss of the last steps':32}{at_the_end(well):10.3f}{at_the_end(ill):14.3f}")
    for row, key, kind in SCORES:
        print(f"{row:32}{100 * well[key][kind]:10.1f}{100 * ill[key][kind]:14.1f}")

    for (question, right, healthy), (_, _, answer) in zip(well["answers"], ill["answers"]):
        print(f"\n  {question}\n    right         {in_one_line(right)}")
        print(f"    healthy       {in_one_line(healthy)}")
        print(f"    with the bug  {in_one_line(answer)}")
    print()


def at_the_end(result, steps=20):
    """The mean over some steps: a batch of descriptions is easier than one of short answers."""
    last = result["losses"][-steps:]
    return sum(last) / len(last)


def in_one_line(text):
    return textwrap.shorten(printable(text, keep=""), 84, placeholder=" ...")


def paragraph(text):
    print(textwrap.fill(text, 96) + "\n")


# ------------------------------------------------------------------------------------- the quiz

def quiz(museum, seed):
    """Every exhibit in random order, its name hidden, until the list or the input ends."""
    rng = random.Random(seed)
    names = rng.sample(list(EXHIBITS), len(EXHIBITS))
    found = asked = 0
    for case, name in enumerate(names, 1):
        print(f"\nCase {case} of {len(names)}\n")
        print_symptoms(*museum.compare(name), "with the bug")
        choices = options_for(name, rng)
        for number, choice in enumerate(choices, 1):
            print(f"  {number}  {EXHIBITS[choice].title}")
        try:
            answer = choices[read_number(len(choices)) - 1]
        except (EOFError, KeyboardInterrupt):
            break

        asked += 1
        found += answer == name
        verdict = "Yes" if answer == name else "No"
        print(f"\n{verdict}: {EXHIBITS[name].title.lower()} ({name})")
        paragraph(EXHIBITS[name].sign)
    print(f"\n{found} of {asked} found.")


def options_for(name, rng):
    """The bug and others that leave the same kind of traces, in random order."""
    trained = EXHIBITS[name].trained
    others = [other for other in EXHIBITS if EXHIBITS[other].trained == trained and other != name]
    choices = [name, *rng.sample(others, CHOICES - 1)]
    rng.shuffle(choices)
    return choices


def read_number(highest):
    """What is typed, or comes through a pipe; EOFError at its end, or by Ctrl-D."""
    while True:
        typed = read_message("\nWhich bug is it? ")
        if typed.isdecimal() and 1 <= int(typed) <= highest:
            return int(typed)
        note(f"a number from 1 to {highest}; Ctrl-D ends the quiz")


# ----------------------------------------------------------------------------------- the command

def main():
    parser = command_parser("explain.museum", __doc__)
    parser.add_argument("name", nargs="?", choices=EXHIBITS, metavar="NAME", help="of an exhibit")
    parser.add_argument("--quiz", action=argparse.BooleanOptionalAction, default=False,
                        help="hide the names, and ask for them")
    parser.add_argument("--scenes", type=int, default=400, help="that each training learns from")
    parser.add_argument("--per-type", type=int, default=16, help="held-out questions of each type")
    parser.add_argument("--seed", type=int, default=0, help="of the quiz's order")
    parser.add_argument("--out", type=Path, default=Path("runs/museum"))
    args = parser.parse_args()
    with errors_in_one_line():
        if args.quiz and args.name:
            raise ValueError("--quiz hides the names: give one or the other")
        if args.scenes < 20 or args.per_type < 1:
            raise ValueError("--scenes is 20 or more, --per-type 1 or more")
        museum = Museum(args.out, args.scenes, args.per_type)
        if args.quiz:
            quiz(museum, args.seed)
        elif args.name:
            visit(museum, args.name)
        else:
            overview()


if __name__ == "__main__":
    main()
