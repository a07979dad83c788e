"""The flags of a teacher, the teacher that they name, and a command that asks it."""
import os
import signal
from pathlib import Path

from minillava.instruct.budget import Budget
from minillava.instruct.endpoint import Endpoint
from minillava.instruct.local import LocalVicuna
from minillava.instruct.teacher import Teacher, free_teacher
from minillava.terminal import exit_with


def add_teacher_flags(parser, temperature, name="--teacher"):
    """The flags that `open_from_flags` reads; `name` is that of the one which says who is asked."""
    add = parser.add_argument_group("teacher").add_argument
    add(name, metavar="toy|openai|FOLDER",
        help="the template teacher of the toy world; the endpoint that OPENAI_BASE_URL, OPENAI_MODEL "
             "and OPENAI_API_KEY name; or the folder of a Vicuna")
    add("--cache", type=Path, default=Path("runs/teacher"), help="folder that keeps every answer")
    add("--temperature", type=float, default=temperature)
    add("--max-tokens", type=int, default=1024, help="longest answer")
    add("--concurrency", type=int, default=8, help="requests at a time (endpoint)")
    add("--timeout", type=float, default=120.0, help="seconds for one request (endpoint)")
    add("--retries", type=int, default=6, help="further tries of a request that fails (endpoint)")
    add("--max-tokens-spent", type=int, help="stop before prompts and answers have more tokens")
    add("--prices", type=float, nargs=2, default=(0.0, 0.0), metavar=("IN", "OUT"),
        help="dollars per million tokens of prompts and of answers")
    add("--max-cost", type=float, help="stop before they cost more dollars, at these --prices")


def open_from_flags(name, args, teachers=None):
    """What `add_teacher_flags` was given -> Teacher, opened by `name`."""
    return open_teacher(
        name, teachers, cache=args.cache, temperature=args.temperature, max_tokens=args.max_tokens,
        concurrency=args.concurrency, timeout=args.timeout, retries=args.retries,
        max_tokens_spent=args.max_tokens_spent, max_cost=args.max_cost, prices=args.prices)


def open_teacher(name, teachers=None, *, cache, temperature, max_tokens=1024, concurrency=8,
                 timeout=120.0, retries=6, max_tokens_spent=None, max_cost=None, prices=(0.0, 0.0)):
    """-> Teacher. name: one of `teachers`, "openai", or the folder of a Vicuna.

    teachers: {name: ask(messages) -> text}, further ones that cost nothing.
    ValueError or OSError, in one line, if it cannot be had.
    """
    if not name:
        raise ValueError("--teacher says who is asked: toy, openai or the folder of a Vicuna")
    if max_tokens < 1 or concurrency < 1 or timeout <= 0 or retries < 0 or temperature < 0:
        raise ValueError("--max-tokens, --concurrency and --timeout are above 0, "
                         "--retries and --temperature not below")
    if max_cost is not None and not all(price > 0 for price in prices):
        raise ValueError("--max-cost needs --prices IN OUT, in dollars per million tokens")
    if teachers and name in teachers:
        return free_teacher(teachers[name])

    budget = Budget(max_tokens_spent, max_cost, prices)
    settings = {"temperature": temperature, "max_tokens": max_tokens}  # part of a cached answer's name
    if name == "openai":
        endpoint, base_url = open_endpoint(settings, timeout)
        settings = endpoint.settings | {"base_url": base_url}
        return Teacher(endpoint.complete, settings, cache, concurrency, retries, budget=budget)

    vicuna = LocalVicuna(name, temperature, max_tokens)
    newest = max(file.stat().st_mtime_ns for file in Path(name).iterdir())  # trained on: other answers
    settings = settings | {"folder": str(Path(name).resolve()), "newest": newest}
    return Teacher(vicuna.complete, settings, cache, budget=budget)


def open_endpoint(settings, timeout):
    """The endpoint that the environment names, and its address."""
    model = os.environ.get("OPENAI_MODEL")
    if not model:
        raise ValueError("--teacher openai asks the model that OPENAI_MODEL names; set it")
    base_url = os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    key = os.environ.get("OPENAI_API_KEY", "")
    return Endpoint(base_url, key, settings | {"model": model}, timeout), base_url.rstrip("/")


def run_command(parser):
    """Parses the command line and calls `args.run(args)`, whose result is the exit code."""
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: answers under way are waited for
    try:
        parser.exit(args.run(args))
    except (OSError, ValueError) as error:
        exit_with(error)
    except KeyboardInterrupt:
        parser.exit(130, "stopped; what was answered is kept, the same command goes on\n")
