"""python -m minillava.weights apply-delta --base DIR --delta DIR --out DIR"""
import argparse

from minillava.weights.deltas import apply_delta


def main():
    parser = argparse.ArgumentParser(
        prog="python -m minillava.weights", description="Weights in and out.")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("apply-delta", help="LLaMA + a published LLaVA delta = LLaVA")
    command.add_argument("--base", required=True, metavar="DIR", help="folder of the LLaMA")
    command.add_argument("--delta", required=True, metavar="DIR", help="folder of the delta")
    command.add_argument("--out", required=True, metavar="DIR", help="folder to write")

    args = parser.parse_args()
    try:
        apply_delta(args.base, args.delta, args.out)
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
