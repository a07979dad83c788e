"""Who writes LLaVA's data and judges its answers: ask(messages) -> text (section 3: GPT-4, which never sees a picture).

    teacher.ask([{"role": "system", "content": "..."}, {"role": "user", "content": "..."}])

One exchange is in endpoint.py (a server) and local.py (a Vicuna on this machine). Here is what a run
of a hundred thousand of them needs: several at a time, each answer kept on the disk the moment it
comes, trouble waited out, a limit on what they cost. A run that was stopped goes on; a rerun is free.
"""
import json
import queue
import random
import sys
import threading
from pathlib import Path

from tqdm import tqdm

from minillava.instruct.budget import Budget
from minillava.instruct.cache import answer_path, read_answer, write_answer
from minillava.instruct.exchange import Answer, LimitReached, TeacherError, TryAgain

MAX_WAIT = 300  # seconds: a server that asks for more is not waited for


class Teacher:
    """Any `complete(messages) -> Answer`, cached, retried, within a budget, in threads."""

    def __init__(self, complete, settings=None, cache=None, workers=1, retries=6, backoff=1.0,
                 budget=None):
        """settings: what an answer depends on beside the messages, {"max_tokens": its longest, ...}.

        cache: a folder, or None for a teacher that costs nothing; backoff: seconds before the second
        try, doubled with each further one.
        """
        self.complete = complete
        self.settings = settings
        self.cache = Path(cache) if cache else None
        self.workers = workers
        self.retries = retries
        self.backoff = backoff
        self.budget = budget or Budget()
        self.requests = 0  # sent
        self.from_cache = 0
        self.change = threading.Condition()  # held to read or change the budget and the counts
        self.stopping = threading.Event()

    def ask(self, messages):
        """-> the answer's text. TeacherError: stop; ValueError: go on without this one."""
        if self.cache is None:
            return self.complete(messages).text
        path = answer_path(self.cache, self.settings, messages)
        if self.is_cached(path, most_tokens(messages, self.settings["max_tokens"])):
            return read_answer(path).text

        try:
            answer = self.ask_until_answered(messages)
            write_answer(path, messages, answer)
        finally:
            with self.change:
                del self.budget.reserved[path]
                self.change.notify_all()
        return answer.text

    def is_cached(self, path, most):
        """True, or False as soon as the request may be sent; `most` is then reserved for it.

        Another thread that is asking the very same is waited for, and so are those whose
        reservations leave no room for this one: they may come cheaper.
        """
        reserved = self.budget.reserved
        with self.change:
            while True:
                if path not in reserved and path.exists():
                    self.from_cache += 1
                    return True
                if self.stopping.is_set():
                    raise TeacherError("stopped")
                if path not in reserved and self.budget.fits(most):
                    reserved[path] = most
                    return False
                if not reserved:
                    raise LimitReached(f"the limit is near: {self.spending()}; "
                                       "raise it and run again to go on")
                self.change.wait()

    def ask_until_answered(self, messages):
        """Tries `complete` until there is an answer or the retries run out."""
        for attempt in range(1, self.retries + 2):
            try:
                answer = self.complete(messages)
                self.count((answer.prompt_tokens, answer.answer_tokens))
                return answer
            except TryAgain as failure:
                self.count(failure.tokens)
                error, wait = failure.error, failure.after

            if wait is None:  # at random, so that the threads do not come all at once
                wait = min(60, self.backoff * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
            if attempt > self.retries or wait > MAX_WAIT:
                asked_for = f", and it asks to wait {wait:.0f} s" if wait > MAX_WAIT else ""
                raise type(error)(f"{error} (tried {attempt} times{asked_for})")
            tqdm.write(f"teacher: {error}; try {attempt + 1} of {self.retries + 1} in {wait:.1f} s",
                       sys.stderr)
            if self.stopping.wait(wait):
                raise TeacherError("stopped")

    def count(self, tokens):
        with self.change:
            self.requests += 1
            self.budget.count(tokens)

    def spending(self):
        """What was spent, in words."""
        if self.cache is None:
            return "nothing was spent"
        prompt, answer = self.budget.spent
        dollars = f", ${self.budget.cost(prompt, answer):.2f}" if any(self.budget.prices) else ""
        return (f"{self.requests} requests, {self.from_cache} more from the cache; "
                f"{prompt} + {answer} tokens of prompts and answers spent{dollars}")

    def map(self, function, jobs, description="teacher"):
        """[function(job), ...], several at a time.

        When one raises, or at Ctrl-C, no new one begins; those under way end, and their answers are
        kept; then it is raised. A second Ctrl-C does not wait for them.
        """
        jobs = list(jobs)
        results = [None] * len(jobs)
        waiting = queue.SimpleQueue()
        finished = queue.SimpleQueue()  # for each job None, or the exception that it raised
        for number in range(len(jobs)):
            waiting.put(number)

        def work():
            while not self.stopping.is_set():
                try:
                    number = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    results[number] = function(jobs[number])
                    finished.put(None)
                except BaseException as error:
                    finished.put(error)

        self.stopping.clear()
        threads = [threading.Thread(target=work, daemon=True) for _ in range(self.workers)]
        for thread in threads:
            thread.start()
        try:
            for _ in tqdm(jobs, desc=description):
                error = finished.get()
                if error:
                    raise error
        except BaseException:
            self.stopping.set()
            for thread in threads:
                thread.join()
            raise
        return results


def free_teacher(ask):
    """A Teacher of `ask(messages) -> text`, which costs nothing: no cache, no limit."""
    return Teacher(lambda messages: Answer(ask(messages)))


def most_tokens(messages, max_tokens):
    """The most that a request can cost, of prompt and of answer: a token is a byte at least."""
    return len(json.dumps(messages).encode()) + 16 * len(messages), max_tokens
