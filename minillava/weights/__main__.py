"""python -m minillava.weights apply-delta --base DIR --delta DIR --out DIR"""
import argparse

from minillava.weights.deltas import apply_delta


def main():
    parser = argparse.ArgumentParser(prog="python -m minillava.weights", description="Weights in and out.")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("apply-delta", help="LLaMA + a published LLaVA delta = LLaVA")
    for name, text in (("base", "folder of the LLaMA"), ("delta", "folder of the delta"), ("out", "folder to write")):
        command.add_argument(f"--{name}", required=True, metavar="DIR", help=text)
    args = parser.parse_args()
    try:
        apply_delta(args.base, args.delta, args.out)
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
