"""Talk with a LLaVA about a picture, in the terminal.

    python chat.py                                # the shipped miniature, a freshly drawn scene
    python chat.py --image photo.jpg --model DIR
    python chat.py --image photo.jpg --prompt "What is unusual here?"   # prints the answer alone
    echo "What is unusual here?" | python chat.py --image photo.jpg --prompt - --json
"""
import argparse
import json
import sys
import tempfile
import time

import torch

from minillava import terminal
from minillava.checkpoint import load_llava
from minillava.conversation import IMAGE, human_turn, render
from minillava.explain.commands import COMMANDS, SETTINGS, introduce, keyword
from minillava.fastest import choose_products
from minillava.generate import PrefixCache, check_sampling, generate, stream
from minillava.images import load_image
from minillava.linear import prepack_layers
from minillava.terminal import note, printable
from minillava.toy.scene import Scene
from minillava.weights.allocator import keep_freed_memory


class Chat:
    """One conversation about one picture: its turns, and the cache in which they were run."""

    def __init__(self, model, tokenizer, settings, preview):
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings    # keyword arguments of `stream`
        self.preview = preview      # whether pictures are drawn in the terminal

    def start(self, image, scene=None):
        """Anew, with a picture; scene: what it shows, where it was drawn here."""
        self.image = image
        self.scene = scene
        self.turns = []
        self.cache = PrefixCache(self.model)
        self.show(image)

    def show(self, picture):
        if self.preview:
            terminal.show_picture(picture)

    def run(self):
        """Reads and answers until the user leaves; what goes wrong is one line, and it goes on."""
        terminal.edit_lines(COMMANDS)
        while True:
            try:
                self.take(terminal.read_message("you> "))
            except EOFError:            # Ctrl-D, /quit
                print()
                return
            except KeyboardInterrupt:   # the line is given up, not the chat
                print()
            except BrokenPipeError:
                raise
            except (OSError, ValueError, torch.OutOfMemoryError) as error:
                note(error, "plain")

    def take(self, message):
        """What was typed is done; where that fails, also within /retry, the chat is as before."""
        before = vars(self).copy()
        try:
            self.obey(message)
        except BaseException:
            vars(self).update(before)
            raise

    def obey(self, message):
        """A question is answered and a command obeyed; an empty line is neither."""
        name, _, words = message.partition(" ")
        if name in COMMANDS:
            COMMANDS[name](self, words.strip())
        elif terminal.is_dragged_file(message):
            COMMANDS["/image"](self, message)
        elif message.startswith("/"):
            raise ValueError(f"there is no command {name}; /help lists them")
        elif message:
            self.ask(message)

    def ask(self, question):
        turns = [*self.turns, human_turn(question, image=not self.turns)]
        kept = self.make_room(turns)
        answer = self.write_answer(kept)
        for old in turns[: len(turns) - len(kept) : 2]:
            note(f"the context is full: {typed(old)!r:.60} and its answer leave it")
        self.turns = [*kept, ("gpt", answer)]

    def make_room(self, turns):
        """Old turns leave whole when question and answer would no longer fit; the picture stays."""
        room = min(self.settings["max_new_tokens"], self.cache.max_length // 8)
        while len(turns) > 2 and len(self.prompt_ids(turns)) + room > self.cache.max_length:
            turns = [human_turn(turns[2][1], image=True), *turns[3:]]
        return turns

    def prompt_ids(self, turns):
        ids, _ = render([*turns, ("gpt", None)], self.tokenizer, self.model.config.template,
                        self.model.config.image_tokens)
        return ids

    def write_answer(self, turns):
        """The answer to the last turn, written as it comes, and its figures. Ctrl-C ends it.

        Before its first word, Ctrl-C gives up the question.
        """
        prompt = len(self.prompt_ids(turns))
        print("llava> ", end="", flush=True)
        text = terminal.WrappedText(terminal.width(), start=len("llava> "))
        answer = ""
        start = first = time.perf_counter()
        try:
            for piece in stream(self.model, self.tokenizer, turns, self.image,
                                cache=self.cache, **self.settings):
                if not answer:
                    first = time.perf_counter()
                    piece = piece.lstrip()
                answer += piece
                text.put(piece)
        except KeyboardInterrupt:
            if not answer:
                raise
            text.put(" ...")        # what was said so far stays
        finally:
            text.end()
        self.write_figures(len(self.cache.ids) - prompt, time.perf_counter() - start, first - start)
        return answer.strip()

    def write_figures(self, tokens, seconds, first):
        used = len(self.cache.ids)
        limit = self.cache.max_length
        if terminal.width():
            note(f"{tokens} tokens, {tokens / seconds:.0f} tokens/s, "
                 f"the first after {first:.2f} s, context {used:,} of {limit:,}")
        if tokens == self.settings["max_new_tokens"]:
            note(f"cut after {tokens} tokens; /set max-new-tokens {2 * tokens} allows more")
        if used > limit * 7 // 8:
            note("the context is nearly full: /clear starts anew, or else the oldest turns leave")

    def take_back(self):
        """The last question, which is taken out of the conversation with its answer."""
        if not self.turns:
            raise ValueError("nothing has been asked yet")
        *self.turns, question, _ = self.turns
        return typed(question)


def typed(turn):
    """A human turn as it was typed, without the mark of the image."""
    return turn[1].removeprefix(f"{IMAGE}\n")


def read_prompts(prompts):
    """The questions, where - is what standard input says."""
    prompts = [sys.stdin.read() if prompt == "-" else prompt for prompt in prompts]
    if not all(prompt.strip() for prompt in prompts):
        raise ValueError("the question is empty; ask something, or - to read it from a pipe")
    return prompts


def read_images(paths, count):
    """A picture for each of so many questions: one may serve all, without any a scene is drawn."""
    if not paths:
        with tempfile.NamedTemporaryFile(prefix="scene-", suffix=".png", delete=False) as file:
            Scene.new().picture().save(file)
        paths = [file.name]
        print(f"no --image: this is about a scene drawn just now, {file.name}", file=sys.stderr)
    if len(paths) not in (1, count):
        raise ValueError(f"{len(paths)} images for {count} questions: one for each, or one for all")
    images = [load_image(terminal.typed_path(path)) for path in paths]
    return images if len(images) == count else images * count


def answer_prompts(model, tokenizer, prompts, images, settings, as_json):
    """All questions as one batch; only the answers are printed, or a line of JSON for each."""
    start = time.perf_counter()
    answers = generate(model, tokenizer, prompts, images, **settings)
    seconds = time.perf_counter() - start
    for prompt, answer in zip(prompts, answers):
        if as_json:
            tokens = len(tokenizer.segment(answer))
            print(json.dumps({"prompt": prompt, "answer": answer, "tokens": tokens,
                              "seconds": round(seconds, 3), "batch": len(prompts)}))
        else:
            print(printable(answer))


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help="folder of a LLaVA (default: the shipped miniature)")
    for part in ("vision", "language", "projector", "base"):
        add(f"--{part}", help=f"the {part} where the model comes in parts, see the README")
    add("--image", action="append", help="the picture (default: a freshly drawn toy scene)")
    add("--prompt", action="append", help="a question, - for a pipe; several are one batch")
    add("--json", action=argparse.BooleanOptionalAction, default=False, help="JSON lines")
    add("--preview", action=argparse.BooleanOptionalAction, default=True, help="draw the pictures")
    for name, (kind, default, meaning) in SETTINGS.items():
        add(f"--{name}", type=kind, default=default, help=meaning)
    add("--stop", action="append", default=[], help="a text before which an answer ends")
    add("--seed", type=int, help="draws the same scene, and the same words, again")
    add("--device", default="auto", help="cuda, mps or cpu; auto: the first of these that is here")
    add("--quantize", choices=("int8", "int4"), help="a smaller language model, nearly as good")
    add("--verbose", action=argparse.BooleanOptionalAction, default=False,
        help="say on stderr which product of the linear layers is the fastest here")
    add("--dtype", default="fast", help="float32, bfloat16, float16; fast: as suits the device")
    return parser


def main():
    terminal.print_in_utf8()
    args = make_parser().parse_args()
    settings = {name: getattr(args, name) for name in [*map(keyword, SETTINGS), "stop"]}
    try:
        check_sampling(**settings)
        torch.manual_seed(torch.seed() if args.seed is None else args.seed)
        prompts = read_prompts(args.prompt or [])
        if args.json and not prompts:
            raise ValueError("--json goes with --prompt: a question, or - to read it from a pipe")
        images = []
        if prompts or args.image:
            images = read_images(args.image, max(1, len(prompts)))
        keep_freed_memory()
        model, tokenizer = load_llava(args.model, vision=args.vision, language=args.language,
                                      projector=args.projector, base=args.base,
                                      device=args.device, dtype=args.dtype, quantize=args.quantize)
        prepack_layers(model.requires_grad_(False))
        if not prompts:
            introduce(model, args.model or args.language)
        if args.seed is None:  # its choice may differ from run to run, and with it what is rounded
            choose_products(model.language_model, max(1, len(prompts)), args.verbose)
        if prompts:
            answer_prompts(model, tokenizer, prompts, images, settings, args.json)
        else:
            chat = Chat(model, tokenizer, settings, args.preview)
            scene = None if images else Scene.new()
            chat.start(scene.picture() if scene else images[0], scene)
            chat.run()
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, ValueError, torch.OutOfMemoryError) as error:
        terminal.exit_with(error)


if __name__ == "__main__":
    main()
