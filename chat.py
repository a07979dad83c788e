"""Talk with a LLaVA about a picture, in the terminal.

    python chat.py                                  # the shipped miniature, on a freshly drawn scene
    python chat.py --image photo.jpg --model DIR
    python chat.py --image photo.jpg --prompt "How many shapes are there?"      # prints the answer alone
"""
import argparse
import random
from pathlib import Path

from PIL import Image

from minillava.checkpoint import load_llava
from minillava.conversation import human_turn
from minillava.generate import PrefixCache, stream
from minillava.images import load_image
from minillava.toy import world

HELP = """/image FILE   look at another picture, and start anew
/new          draw another toy scene, and start anew
/clear        start anew with this picture
/help         this list
/quit         or Ctrl-D: leave"""


def show(image, columns=36):
    """The picture in the terminal, two pixels to a character: a half block in the upper's colour on the lower's."""
    rows = max(2, round(columns * image.height / image.width)) // 2 * 2
    pixels = image.convert("RGB").resize((columns, rows), Image.Resampling.BOX).load()
    for y in range(0, rows, 2):
        cells = ["\033[38;2;{};{};{};48;2;{};{};{}m▀".format(*pixels[x, y], *pixels[x, y + 1]) for x in range(columns)]
        print("".join(cells) + "\033[0m")


def answer(model, tokenizer, turns, image, args, memory):
    """Prints the answer as it comes and returns it."""
    pieces = []
    for piece in stream(model, tokenizer, turns, image, args.max_new_tokens, args.temperature, args.top_p,
                        cache=memory):
        piece = piece if pieces else piece.lstrip()
        pieces.append(piece)
        print(piece, end="", flush=True)
    print()
    return "".join(pieces)


def draw_scene():
    rng = random.Random()
    return world.draw(world.make_scene(rng, "val"), rng)


def chat(model, tokenizer, image, args):
    print("Ask about the picture. /help lists the commands.")
    turns, memory = [], PrefixCache(model)
    while True:
        if not turns:
            show(image)
        try:
            line = input("you> ").strip()
        except (EOFError, KeyboardInterrupt):
            return print()
        if not line:
            continue
        command, _, rest = line.partition(" ")
        if command in ("/quit", "/exit"):
            return
        try:
            if command in ("/image", "/new", "/clear"):
                if command != "/clear":
                    image = load_image(rest.strip()) if command == "/image" else draw_scene()
                turns, memory = [], PrefixCache(model)
            elif command == "/help":
                print(HELP)
            elif command.startswith("/"):
                print(f"there is no command {command}\n{HELP}")
            else:
                turns.append(human_turn(line, image=not turns))
                print("llava> ", end="", flush=True)
                turns.append(("gpt", answer(model, tokenizer, turns, image, args, memory)))
        except KeyboardInterrupt:  # Ctrl-C ends the answer, not the chat
            print()
            turns.pop()
        except (OSError, ValueError) as error:
            print(error)
            if len(turns) % 2:
                turns.pop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a LLaVA (default: the shipped miniature)")
    for part in ("vision", "language", "projector"):
        parser.add_argument(f"--{part}", help=f"the {part} where the model comes in parts, see the README")
    parser.add_argument("--image", type=Path, help="the picture (default: a freshly drawn toy scene)")
    parser.add_argument("--prompt", help="one question: print the answer alone and leave")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the most likely word")
    parser.add_argument("--top-p", type=float, default=1.0, help="sample among the likeliest words of this probability")
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...")
    args = parser.parse_args()
    try:
        if args.temperature < 0 or not 0 < args.top_p <= 1 or args.max_new_tokens < 1:
            raise ValueError("--temperature is 0 or more, --top-p above 0 and at most 1, --max-new-tokens at least 1")
        image = load_image(args.image) if args.image else draw_scene()
        model, tokenizer = load_llava(args.model, vision=args.vision, language=args.language, projector=args.projector,
                                      device=args.device)
        if args.prompt is not None:
            answer(model, tokenizer, [human_turn(args.prompt, image=True)], image, args, PrefixCache(model))
        else:
            chat(model, tokenizer, image, args)
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
