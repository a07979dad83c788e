"""The flags of a teacher, and the command that asks one."""
import os
import signal
from pathlib import Path

from minillava.instruct.endpoint import Endpoint
from minillava.instruct.local import Local
from minillava.instruct.teacher import Teacher


def add_arguments(parser, temperature):
    """The flags of a teacher; open_teacher(args) makes it from them."""
    parser.add_argument("--teacher", metavar="toy|openai|FOLDER",
                        help="the template teacher; the endpoint that OPENAI_BASE_URL, OPENAI_MODEL and OPENAI_API_KEY "
                             "name; or the folder of a Vicuna")
    add_limits(parser, temperature)


def add_limits(parser, temperature):
    """The flags that say how a teacher is asked, whoever it is."""
    group = parser.add_argument_group("teacher")
    group.add_argument("--cache", type=Path, default=Path("runs/teacher"), help="folder that keeps every answer")
    group.add_argument("--temperature", type=float, default=temperature)
    group.add_argument("--max-tokens", type=int, default=1024, help="longest answer")
    group.add_argument("--concurrency", type=int, default=8, help="requests at a time (endpoint)")
    group.add_argument("--timeout", type=float, default=120.0, help="seconds for one request (endpoint)")
    group.add_argument("--retries", type=int, default=6, help="further tries of a request that fails (endpoint)")
    group.add_argument("--max-tokens-spent", type=int, help="stop before prompts and answers have more tokens")
    group.add_argument("--prices", type=float, nargs=2, default=(0.0, 0.0), metavar=("IN", "OUT"),
                       help="dollars per million tokens of prompts and of answers")
    group.add_argument("--max-cost", type=float, help="stop before they cost more dollars than this, at these --prices")


def open_teacher(args, teachers=None):
    """-> Teacher. teachers: {name: ask}, further ones that cost nothing. ValueError or OSError, in one line, if it cannot be had."""
    if not args.teacher:
        raise ValueError("--teacher says who is asked: toy, openai or the folder of a Vicuna")
    if args.max_tokens < 1 or args.concurrency < 1 or args.timeout <= 0 or args.retries < 0 or args.temperature < 0:
        raise ValueError("--max-tokens, --concurrency and --timeout are above 0, --retries and --temperature not below")
    if args.max_cost is not None and not all(price > 0 for price in args.prices):
        raise ValueError("--max-cost needs --prices IN OUT, in dollars per million tokens")
    if teachers and args.teacher in teachers:
        return Teacher(lambda messages: (teachers[args.teacher](messages), 0, 0))
    limits = dict(max_tokens_spent=args.max_tokens_spent, max_cost=args.max_cost, prices=args.prices)
    settings = {"temperature": args.temperature, "max_tokens": args.max_tokens}
    if args.teacher == "openai":
        settings["model"] = os.environ.get("OPENAI_MODEL", "")
        if not settings["model"]:
            raise ValueError("--teacher openai asks the model that OPENAI_MODEL names; set it")
        base_url = os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        endpoint = Endpoint(base_url, os.environ.get("OPENAI_API_KEY", ""), settings, args.timeout)
        settings = settings | {"base_url": base_url.rstrip("/")}
        return Teacher(endpoint, settings, args.cache, args.concurrency, args.retries, **limits)
    local = Local(args.teacher, settings)
    newest = max(file.stat().st_mtime_ns for file in Path(args.teacher).iterdir())  # trained on: other answers
    settings = settings | {"folder": str(Path(args.teacher).resolve()), "newest": newest}
    return Teacher(local, settings, args.cache, **limits)


def run_command(parser):
    """What a command does that asks a teacher: args.run(args), whose exit code is 1 where a limit left work undone."""
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: answers under way are waited for
    try:
        parser.exit(args.run(args))
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "stopped; what was answered is kept, the same command goes on\n")
