"""Who writes LLaVA's data and judges its answers (section 3: GPT-4, which never sees a picture).

    teacher.ask([{"role": "system", "content": "..."}, {"role": "user", "content": "..."}]) -> text

One exchange is in endpoint.py (a server) and local.py (a Vicuna on this machine). Here is what a run
of a hundred thousand of them needs: several at a time, each answer kept on the disk the moment it
comes, trouble waited out, a limit on what they cost. A run that was stopped goes on, a rerun is free.
"""
import json
import queue
import random
import re
import sys
import threading
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from minillava.instruct.budget import Budget, add
from minillava.instruct.cache import answer_path, read_answer, write_answer
from minillava.instruct.exchange import Answer, BadReply, LimitReached, TeacherError, TryAgain

MAX_WAIT = 300     # seconds: a server that asks for more is not waited for
MAX_FAILURES = 20  # requests in a row without an answer: the server is taken to be down


class Teacher:
    """Any `complete(messages) -> Answer`, cached, retried, within a budget, in threads."""

    def __init__(self, complete, settings=None, cache=None, max_tokens=1024, workers=1, retries=6,
                 backoff=1.0, budget=None):
        """settings: what an answer depends on beside the messages; cache: a folder, or None for a
        teacher that costs nothing; max_tokens: of the longest answer; backoff: seconds before the
        second try, doubled with each further one.
        """
        self.complete = complete
        self.settings = settings
        self.cache = Path(cache) if cache else None
        self.max_tokens = max_tokens
        self.workers = workers
        self.retries = retries
        self.backoff = backoff
        self.budget = budget or Budget()
        self.requests = 0    # sent
        self.from_cache = 0
        self.failures = 0    # in a row
        self.used = set()    # files of the answers whose cost is counted
        self.change = threading.Condition()  # held to read or change all of the above
        self.stopped_by = None  # a TeacherError: from then on the cache alone answers
        self.interrupted = threading.Event()

    def ask(self, messages):
        """-> the answer's text."""
        return self.answer(messages).text

    def answer(self, messages):
        """-> Answer. TeacherError: no more can be asked; ValueError: go on without this one."""
        if self.cache is None:
            return self.complete(messages)
        path = answer_path(self.cache, self.settings, messages)
        if self.is_cached(path, most_tokens(messages, self.max_tokens)):
            return readable(self.count_kept(path, read_answer(path)))

        try:
            answer = self.ask_until_answered(messages)
            write_answer(path, messages, answer)
            self.used.add(path)
        except TeacherError as error:
            if not self.interrupted.is_set():
                self.stopped_by = error
            raise
        finally:
            with self.change:
                del self.budget.reserved[path]
                self.change.notify_all()
        return readable(answer)

    def has(self, messages):
        """Would the cache answer?"""
        return bool(self.cache) and answer_path(self.cache, self.settings, messages).exists()

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
                if self.interrupted.is_set():
                    raise TeacherError("stopped")
                if self.stopped_by:
                    raise self.stopped_by.with_traceback(None)
                if path not in reserved and self.budget.fits(most):
                    reserved[path] = most
                    return False
                if not reserved:
                    self.stopped_by = self.limit_reached()
                else:
                    self.change.wait()

    def ask_until_answered(self, messages):
        """Tries `complete` until there is an answer or the retries run out."""
        for attempt in range(1, self.retries + 2):
            try:
                answer = self.complete(messages)
                self.count(answer.tokens)
                self.failures = 0
                return answer
            except TryAgain as failure:
                error, wait = failure.error, failure.after
                self.count(error.tokens)
            except BadReply as error:
                self.count(error.tokens)
                self.count_failure(error)
                raise

            if wait is None:  # at random, so that the threads do not come all at once
                wait = min(60, self.backoff * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
            if attempt > self.retries or wait > MAX_WAIT:
                asked_for = f", and it asks to wait {wait:.0f} s" if wait > MAX_WAIT else ""
                error = type(error)(f"{error} (tried {attempt} times{asked_for})")
                self.count_failure(error)
                raise error
            tqdm.write(f"teacher: {error}; try {attempt + 1} of {self.retries + 1} in {wait:.1f} s",
                       sys.stderr)
            if self.interrupted.wait(wait):
                raise TeacherError("stopped")
            if not self.budget.fits():  # the failure was billed
                raise self.limit_reached()

    # ------------------------------------------------------------------------------- what was spent

    def count(self, tokens):
        with self.change:
            self.requests += 1
            self.budget.spent = add(self.budget.spent, tokens)

    def count_kept(self, path, answer):
        """A cached answer was paid for by an earlier run; it counts once."""
        with self.change:
            if path not in self.used:
                self.used.add(path)
                self.budget.earlier = add(self.budget.earlier, answer.tokens)
        return answer

    def count_failure(self, error):
        with self.change:
            self.failures += 1
            if self.failures >= MAX_FAILURES and not self.stopped_by:
                self.stopped_by = TeacherError(
                    f"{self.failures} requests in a row got no answer, the last one: {error}")

    def limit_reached(self):
        earlier = ""
        if any(self.budget.earlier):
            earlier = f", {self.budget.in_words(self.budget.earlier)} by earlier runs"
        return LimitReached(f"the limit is near: {self.spending()}{earlier}; "
                            "raise it and run again to go on")

    def spending(self):
        """What was spent, in words."""
        if self.cache is None:
            return "nothing was spent"
        return (f"{self.requests} requests, {self.from_cache} more from the cache; "
                f"{self.budget.in_words(self.budget.spent)} spent")

    def why_stopped(self):
        """Why the last jobs were not asked for, and what to do."""
        if isinstance(self.stopped_by, LimitReached):
            return str(self.stopped_by)
        return f"{self.stopped_by}; {len(self.used)} answers are kept, the same command goes on"

    # ------------------------------------------------------------------------------ several at a time

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
            while not self.interrupted.is_set():
                try:
                    number = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    results[number] = function(jobs[number])
                    finished.put(None)
                except BaseException as error:
                    finished.put(error)

        self.interrupted.clear()
        threads = [threading.Thread(target=work, daemon=True) for _ in range(self.workers)]
        try:
            for thread in threads:
                thread.start()
            self.watch(finished, len(jobs), description)
        except BaseException:
            self.interrupted.set()
            self.wait_for(threads)
            raise
        return results

    def watch(self, finished, count, description):
        """The bar, with what was spent so far, until `count` jobs are finished or one raises."""
        with tqdm(total=count, desc=description) as bar:
            for _ in range(count):
                error = finished.get()
                if error:
                    raise error
                if any(self.budget.prices):
                    bar.set_postfix_str(f"${self.budget.cost(self.budget.spent):.2f}", refresh=False)
                bar.update()

    def wait_for(self, threads):
        with self.change:
            self.change.notify_all()  # those that wait for room
            under_way = len(self.budget.reserved)
        if under_way:
            print(f"stopping: {under_way} requests are under way; their answers are waited for, since "
                  "they are paid for. Ctrl-C leaves them.", file=sys.stderr)
        for thread in threads:
            if thread.is_alive():
                thread.join()


def free_teacher(ask):
    """A Teacher of `ask(messages) -> text`, which costs nothing: no cache, no limit."""
    return Teacher(lambda messages: Answer(ask(messages)))


def most_tokens(messages, max_tokens):
    """The most that a request can cost, of prompt and of answer: a token is a byte at least."""
    return len(json.dumps(messages).encode()) + 16 * len(messages), max_tokens


def readable(answer):
    """Without what a reasoning model thinks aloud, and with a mark where half a character came."""
    text = re.sub("[\ud800-\udfff]", "\ufffd", answer.text)
    if "</think>" in text:  # some models write the end of it alone
        text = text.rpartition("</think>")[2].lstrip()
    elif text.lstrip().startswith("<think>"):  # cut off while it thought
        text = ""
    return replace(answer, text=text)
