"""Who writes LLaVA's data and judges its answers: ask(messages) -> text (section 3: GPT-4, which never sees a picture).

    toy       the template teacher of the toy world
    openai    any endpoint that speaks OpenAI's chat API; the environment names it: OPENAI_BASE_URL (default: OpenAI's
              own), OPENAI_MODEL, OPENAI_API_KEY
    FOLDER    a Vicuna on this machine, through our own decoder: no key, no network

messages: [{"role": "system", "user" or "assistant", "content": str}, ...]. An answer that took money or time is kept on
the disk, under a hash of its request, the moment it comes: a run that was stopped goes on, and a rerun is free.
"""
import email.utils
import hashlib
import http.client
import json
import os
import random
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import torch
from tqdm import tqdm

from minillava import toy_world
from minillava.checkpoint import load_language
from minillava.generate import Memory, stream
from minillava.model import Llava, LlavaConfig

MAX_REPLY = 4 << 20  # bytes of a whole HTTP reply; one answer has some thousands
MAX_WAIT = 300       # seconds: a server that asks for more is not waited for


class TeacherError(OSError):
    """The teacher cannot be reached or refuses: no use in going on. What was answered is in the cache."""


class LimitReached(TeacherError):
    """The next answer might cost more than is left."""


class BadReply(ValueError):
    """There is no usable answer to this one request; others may fare better."""


class Again(Exception):
    """Worth another try, after so many seconds if the server says so; `error` is what to raise when tries run out."""

    def __init__(self, error, after=None, tokens=(0, 0)):
        self.error, self.after, self.tokens = error, after, tokens


class Teacher:
    """Any `complete(messages) -> (text, prompt tokens, answer tokens)`, cached, retried, within a limit, in threads.

    settings: a dict of what an answer depends on besides the messages, part of a cached answer's name; "max_tokens" in
    it bounds an answer. cache: a folder, or None for a teacher that costs nothing. prices: dollars per million tokens
    of prompt and of answer. The limits hold for this object's life; they are never passed, since a request is only sent
    if the most that it and those under way can cost still fits (a token is a byte at least).
    """

    def __init__(self, complete, settings=None, cache=None, workers=1, retries=6, backoff=1.0, max_tokens_spent=None,
                 max_cost=None, prices=(0.0, 0.0)):
        self.complete, self.settings, self.cache = complete, settings, cache and Path(cache)
        self.workers, self.retries, self.backoff = workers, retries, backoff
        self.max_tokens_spent, self.max_cost, self.prices = max_tokens_spent, max_cost, prices
        self.asked = self.cached = 0
        self.spent = [0, 0]  # tokens of prompts and of answers
        self.under_way, self.change, self.stopped = {}, threading.Condition(), threading.Event()

    def ask(self, messages):
        """-> the answer. TeacherError: stop; ValueError (BadReply is one): go on without this one."""
        if self.cache is None:
            return self.complete(messages)[0]
        request = json.dumps([self.settings, messages], sort_keys=True)
        key = hashlib.sha256(request.encode()).hexdigest()
        path = self.cache / key[:2] / f"{key}.json"
        most = len(json.dumps(messages).encode()) + 16 * len(messages), self.settings["max_tokens"]
        with self.change:
            while True:
                free = key not in self.under_way  # else another thread is asking the very same
                if free and path.exists():
                    self.cached += 1
                    return read_answer(path)
                if self.stopped.is_set():
                    raise TeacherError("stopped")
                if free and self.fits(most):
                    break
                if not self.under_way:
                    raise LimitReached(f"the limit is near: {self.report()}; raise it and run again to go on")
                self.change.wait()
            self.under_way[key] = most
        try:
            text, tokens = self.persist(messages)
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
            new.write_text(json.dumps({"messages": messages, "text": text, "tokens": tokens}), encoding="utf-8")
            os.replace(new, path)
            return text
        finally:
            with self.change:
                del self.under_way[key]
                self.change.notify_all()

    def count(self, tokens):
        with self.change:
            self.asked, self.spent = self.asked + 1, [a + b for a, b in zip(self.spent, tokens)]

    def persist(self, messages):
        """Asks until there is an answer or tries run out -> text, tokens."""
        for attempt in range(self.retries + 1):
            try:
                text, *tokens = self.complete(messages)
                self.count(tokens)
                return text, tokens
            except Again as again:
                self.count(again.tokens)
                error, wait = again.error, again.after
            if wait is None:  # not all threads at once
                wait = min(60, self.backoff * 2**attempt) * random.uniform(0.5, 1)
            if attempt == self.retries or wait > MAX_WAIT:
                raise type(error)(f"{error} (tried {attempt + 1} times"
                                  + (f", and it asks to wait {wait:.0f} s)" if wait > MAX_WAIT else ")"))
            tqdm.write(f"teacher: {error}; try {attempt + 2} of {self.retries + 1} in {wait:.1f} s", sys.stderr)
            if self.stopped.wait(wait):
                raise TeacherError("stopped")

    def fits(self, most):
        prompt, answer = (self.spent[i] + most[i] + sum(m[i] for m in self.under_way.values()) for i in (0, 1))
        return ((self.max_tokens_spent is None or prompt + answer <= self.max_tokens_spent)
                and (self.max_cost is None or self.cost(prompt, answer) <= self.max_cost))

    def cost(self, prompt, answer):
        return (prompt * self.prices[0] + answer * self.prices[1]) / 1e6

    def report(self):
        if self.cache is None:
            return "nothing was spent"
        cost = f", ${self.cost(*self.spent):.2f}" if any(self.prices) else ""
        return (f"{self.asked} requests, {self.cached} more from the cache; "
                f"{self.spent[0]} + {self.spent[1]} tokens of prompts and answers spent{cost}")

    def map(self, function, jobs, desc="teacher"):
        """[function(job), ...], several at a time. When one raises, or at Ctrl-C, no new one begins, those under way
        end and their answers are kept; then it is raised."""
        self.stopped.clear()
        with ThreadPoolExecutor(self.workers) as pool:
            futures = [pool.submit(function, job) for job in jobs]
            try:
                for future in tqdm(as_completed(futures), total=len(futures), desc=desc):
                    future.result()
            except BaseException:
                self.stopped.set()
                pool.shutdown(cancel_futures=True)
                raise
        return [future.result() for future in futures]


def read_answer(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))["text"]
    except (ValueError, KeyError, TypeError):
        raise TeacherError(f"{path} is no cached answer; delete it") from None


class Endpoint:
    """One exchange with a server that speaks OpenAI's chat API. No redirect is followed: the key goes nowhere else."""

    def __init__(self, base_url, key, settings, timeout=120.0):
        """settings: {"model", "temperature", "max_tokens"}, sent as they are; timeout: seconds of a whole exchange."""
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc or url.query:
            raise ValueError("OPENAI_BASE_URL is an address such as https://api.openai.com/v1, without user or query")
        if not all("!" <= character <= "~" for character in key):  # http.client would show the key in its error
            raise ValueError("OPENAI_API_KEY holds a character that no key has, such as a space or a line end")
        self.connection = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        self.host, self.port, self.path = url.hostname, url.port, url.path.rstrip("/") + "/chat/completions"
        self.key, self.settings, self.timeout = key, settings, timeout

    def __call__(self, messages):
        status, headers, body = self.post(json.dumps({**self.settings, "messages": messages}).encode())
        message = f"{self.host} says HTTP {status}: {' '.join(body[:300].decode(errors='replace').split())}"
        if status in (408, 429) or status >= 500:
            raise Again(TeacherError(message), seconds(headers.get("Retry-After")))
        if status != 200:
            raise (BadReply if status in (400, 413, 422) else TeacherError)(message)
        if len(body) > MAX_REPLY:
            raise Again(BadReply(f"{self.host} sent more than {MAX_REPLY} bytes"))
        text, tokens = None, [0, 0]
        with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):  # JSON of any shape
            reply = json.loads(body)
            tokens = [int((reply.get("usage") or {}).get(f"{part}_tokens", 0)) for part in ("prompt", "completion")]
            text = reply["choices"][0]["message"]["content"]
        if not isinstance(text, str) or not text.strip():
            raise Again(BadReply(f"{message}, which is no answer"), tokens=tokens)
        sizes = sum(len(m["content"]) for m in messages), len(text)  # if the server counts none: four letters a token
        return text, *(n or size // 4 + 1 for n, size in zip(tokens, sizes))

    def post(self, body):
        """-> status, headers, the first MAX_REPLY + 1 bytes of the reply; should the key be there, it is struck out."""
        connection, began = self.connection(self.host, self.port, timeout=self.timeout), time.monotonic()
        try:
            connection.connect()
            clock = threading.Timer(self.timeout, hang_up, [connection.sock])  # the socket's starts anew with each byte
            clock.start()
            try:
                connection.request("POST", self.path, body, {"Content-Type": "application/json"}
                                   | ({"Authorization": f"Bearer {self.key}"} if self.key else {}))
                response = connection.getresponse()
                content = response.read(MAX_REPLY + 1)
            finally:
                clock.cancel()
            if response.length and len(content) <= MAX_REPLY:
                raise http.client.IncompleteRead(content, response.length)
        except (OSError, http.client.HTTPException) as error:
            late = time.monotonic() - began >= self.timeout
            reason = f"no answer within {self.timeout:g} s" if late else str(error) or type(error).__name__
            raise Again(TeacherError(f"{self.host}: {reason}")) from None
        finally:
            connection.close()
        return response.status, response.headers, content.replace(self.key.encode(), b"***") if self.key else content


def hang_up(line):
    with suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)


def seconds(retry_after):
    """The Retry-After header, a number or a date -> seconds from now; None if there is none."""
    if retry_after and retry_after.isdecimal():
        return float(retry_after)
    date = email.utils.parsedate_tz(retry_after or "")
    return date and max(0.0, email.utils.mktime_tz(date) - time.time())


class Local:
    """A Vicuna on this machine. Successive requests share their instructions and examples, so these are run once."""

    def __init__(self, folder, settings, device="auto"):
        language_model, self.tokenizer = load_language(folder, device)
        with torch.device("meta"):  # the eye of a LLaVA that is shown no picture takes no memory
            self.model = Llava(LlavaConfig(language=language_model.config, template="vicuna_v1"))
        self.model.language_model = language_model
        self.settings, self.memory = settings, Memory(self.model)

    def __call__(self, messages):
        system = "".join(message["content"] + "\n\n" for message in messages if message["role"] == "system")
        turns = [("gpt" if message["role"] == "assistant" else "human", message["content"])
                 for message in messages if message["role"] != "system"]
        turns[0] = "human", system + turns[0][1]  # Vicuna's own system message stays, it knows no other
        text = "".join(stream(self.model, self.tokenizer, turns, max_new_tokens=self.settings["max_tokens"],
                              temperature=self.settings["temperature"], memory=self.memory)).strip()
        if not text:
            raise BadReply("the model answered nothing")
        answer = len(self.tokenizer.encode(text))
        return text, max(0, len(self.memory.ids) - answer), answer


def add_arguments(parser, temperature):
    """The flags of a teacher; open_teacher(args) makes it from them."""
    group = parser.add_argument_group("teacher")
    group.add_argument("--teacher", metavar="toy|openai|FOLDER",
                       help="the template teacher; the endpoint that OPENAI_BASE_URL, OPENAI_MODEL and OPENAI_API_KEY "
                            "name; or the folder of a Vicuna")
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


def open_teacher(args):
    """-> Teacher. ValueError or OSError, in one line, if it cannot be had."""
    if not args.teacher:
        raise ValueError("--teacher says who is asked: toy, openai or the folder of a Vicuna")
    if args.max_tokens < 1 or args.concurrency < 1 or args.timeout <= 0 or args.retries < 0 or args.temperature < 0:
        raise ValueError("--max-tokens, --concurrency and --timeout are above 0, --retries and --temperature not below")
    if args.max_cost is not None and not all(price > 0 for price in args.prices):
        raise ValueError("--max-cost needs --prices IN OUT, in dollars per million tokens")
    if args.teacher == "toy":
        return Teacher(lambda messages: (toy_world.ask(messages), 0, 0))
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
