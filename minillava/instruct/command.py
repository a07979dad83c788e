"""The flags of a teacher, the teacher that they name, and a command that asks it."""
import argparse
import json
import math
import os
import signal
from pathlib import Path

from minillava.instruct.budget import Budget, estimate
from minillava.instruct.endpoint import Endpoint
from minillava.instruct.exchange import LimitReached
from minillava.instruct.local import LocalVicuna
from minillava.instruct.teacher import Teacher, free_teacher
from minillava.terminal import errors_in_one_line, exit_with, printable

DAY = 86400.0  # seconds


def add_teacher_flags(parser, temperature, name="--teacher", teachers=()):
    """The flags that `open_from_flags` reads.

    name: that of the one which says who is asked; teachers: whom it may name beside an endpoint and
    a folder.
    """
    add = parser.add_argument_group(name.removeprefix("--")).add_argument
    add(name, metavar="|".join([*teachers, "openai", "FOLDER"]),
        help="the endpoint that OPENAI_BASE_URL, OPENAI_MODEL and OPENAI_API_KEY name, "
             "or the folder of a Vicuna")
    add("--cache", type=Path, default=Path("runs/teacher"), help="folder that keeps every answer")
    add("--temperature", type=float, default=temperature)
    add("--max-tokens", type=int, default=1024, help="longest answer")
    add("--max-tokens-spent", type=int, help="stop before prompts and answers have more tokens")
    add("--prices", type=float, nargs=2, default=(0.0, 0.0), metavar=("IN", "OUT"),
        help="dollars per million tokens of prompts and of answers")
    add("--max-cost", type=float, help="stop before they cost more dollars, at these --prices")

    add = parser.add_argument_group("endpoint").add_argument
    add("--concurrency", type=int, default=8, help="requests at a time")
    add("--timeout", type=float, default=120.0, help="seconds for one request")
    add("--retries", type=int, default=6, help="further tries of a request that fails")
    add("--token-field", default="max_tokens", metavar="NAME",
        help="what the server calls --max-tokens; newer models say max_completion_tokens")
    add("--send-temperature", action=argparse.BooleanOptionalAction, default=True,
        help="some models refuse every temperature but their own")
    add("--fields", type=json_object, default={}, metavar="JSON",
        help="further fields of a request, such as '{\"reasoning_effort\": \"low\"}'")


def json_object(text):
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object, such as {{\"top_p\": 0.9}}")
    return fields


def open_from_flags(name, args, teachers=None):
    """What `add_teacher_flags` was given -> Teacher.

    name: one of `teachers`, "openai", or the folder of a Vicuna; teachers: {name: ask(messages) ->
    text}, further ones that cost nothing. ValueError or OSError, in one line, if it cannot be had.
    """
    check_numbers(args)
    known = ", ".join([*(teachers or {}), "openai"]) + " or the folder of a Vicuna"
    if not name:
        raise ValueError(f"--teacher says who is asked: {known}")
    if teachers and name in teachers:
        return free_teacher(teachers[name])

    concurrency = args.concurrency
    if name == "openai":
        settings = {args.token_field: args.max_tokens} | args.fields
        if args.send_temperature:
            settings["temperature"] = args.temperature
        endpoint, base_url = open_endpoint(settings, args.timeout)
        settings = endpoint.settings | {"base_url": base_url}  # in the name of a cached answer
        complete = endpoint.complete
    else:
        if not Path(name).is_dir():
            raise ValueError(f"{name} is nobody who can be asked: that is {known}")
        # a folder that was trained on gives other answers
        newest = max((file.stat().st_mtime_ns for file in Path(name).iterdir()), default=0)
        settings = {"temperature": args.temperature, "max_tokens": args.max_tokens,
                    "folder": str(Path(name).resolve()), "newest": newest}
        complete = LocalVicuna(name, args.temperature, args.max_tokens).complete
        concurrency = 1

    make_folder(args.cache, "--cache")
    budget = Budget(args.max_tokens_spent, args.max_cost, args.prices)
    return Teacher(complete, settings, args.cache, args.max_tokens, concurrency, args.retries,
                   budget=budget)


def open_endpoint(settings, timeout):
    """The endpoint that the environment names, and its address."""
    model = os.environ.get("OPENAI_MODEL")
    if not model:
        raise ValueError("openai is the model that OPENAI_MODEL names; set it")
    base_url = os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    key = os.environ.get("OPENAI_API_KEY", "")
    return Endpoint(base_url, key, settings | {"model": model}, timeout), base_url.rstrip("/")


def check_numbers(args):
    """ValueError names the flag whose number makes no sense."""
    if not 0 <= args.temperature <= 100:
        raise ValueError("--temperature is a number from 0 on")
    if args.max_tokens < 1 or args.concurrency < 1 or args.retries < 0:
        raise ValueError("--max-tokens and --concurrency are above 0, --retries not below")
    if not 0 < args.timeout <= DAY:
        raise ValueError("--timeout is a number of seconds, above 0 and at most a day")
    if not all(0 <= price < math.inf for price in args.prices):
        raise ValueError("--prices are dollars per million tokens, 0 or above")
    if args.max_tokens_spent is not None and args.max_tokens_spent < 1:
        raise ValueError("--max-tokens-spent is at least 1")
    if args.max_cost is not None and not 0 < args.max_cost < math.inf:
        raise ValueError("--max-cost is a number of dollars, above 0")
    if args.max_cost is not None and not all(price > 0 for price in args.prices):
        raise ValueError("--max-cost needs --prices IN OUT, in dollars per million tokens")


# ------------------------------------------------------------------------------------- a command

def make_folder(folder, flag):
    """Made now, or told now why it cannot be: not after something is paid for."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{flag} {folder}: there is a file where a folder is wanted") from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{flag} {folder}: nothing can be written there")


def check_output(path, *inputs, flag="--out"):
    """The folder of --out is made; ValueError if no file can be written there, or if it would take
    the place of an input.
    """
    if path.is_dir():
        raise ValueError(f"{flag} {path} is a folder; name a file in it")
    if any(file and file.resolve() == path.resolve() for file in inputs):
        raise ValueError(f"{flag} {path} is what is read, and would be lost; name another file")
    make_folder(path.parent, f"the folder of {flag},")


def print_dry_run(teacher, requests):
    """What would be asked, and what it would cost: the first request whole, the others counted."""
    print(f"the first of {len(requests)} requests:")
    for message in requests[0]:
        print(f"--- {message['role']}\n{printable(message['content'])}")
    print("---")
    fresh = [messages for messages in requests if not teacher.has(messages)]
    letters = sum(len(message["content"]) for messages in fresh for message in messages)
    tokens = estimate(letters) if fresh else 0, len(fresh) * teacher.max_tokens
    print(f"{len(requests)} requests, {len(requests) - len(fresh)} of them answered by the cache; "
          f"the others take about {teacher.budget.in_words(tokens)} (three letters a token; "
          "answers as long as --max-tokens allows)")


def end_without(what, teacher):
    """Ends a command that nothing came of: with exit code 1 at a limit, 2 if nobody answers."""
    if not isinstance(teacher.stopped_by, LimitReached):
        raise teacher.stopped_by
    exit_with(f"there is no {what}. {teacher.why_stopped()}", code=1)


def run_command(parser):
    """Parses the command line and calls `args.run(args)`, which may return an exit code."""
    with errors_in_one_line("stopped; what was answered is kept, the same command goes on"):
        args = parser.parse_args()
        # As Ctrl-C: answers under way are waited for.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        parser.exit(args.run(args) or 0)
