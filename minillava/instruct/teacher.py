"""Who writes LLaVA's data and judges its answers: ask(messages) -> text (section 3: GPT-4, which never sees a picture).

    toy       the template teacher of the toy world
    openai    any endpoint that speaks OpenAI's chat API; the environment names it: OPENAI_BASE_URL (default: OpenAI's
              own), OPENAI_MODEL, OPENAI_API_KEY
    FOLDER    a Vicuna on this machine, through our own decoder: no key, no network

messages: [{"role": "system", "user" or "assistant", "content": str}, ...]. An answer that took money or time is kept on
the disk, under a hash of its request, the moment it comes: a run that was stopped goes on, and a rerun is free.
"""
import hashlib
import json
import os
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

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
