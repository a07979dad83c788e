"""Who writes LLaVA's data and judges its answers (section 3: GPT-4, which never sees a picture).

    teacher.ask([{"role": "system", "content": "..."}, {"role": "user", "content": "..."}]) -> text

One exchange is in endpoint.py (a server) and local.py (a Vicuna on this machine). Here is what a
run of a hundred thousand needs: several at a time, each answer kept on the disk the moment it
comes, trouble waited out, a limit on what they cost. What was stopped goes on; a rerun is free.
"""
import json
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
from minillava.instruct.threads import Workers

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
        self.workers = Workers(workers)
        self.retries = retries
        self.backoff = backoff
        self.budget = budget or Budget()

        self.requests = 0    # sent
        self.from_cache = 0
        self.failures = 0    # in a row
        self.used = set()    # files of the answers whose cost is counted
        self.stopped_by = None  # a TeacherError: from then on the cache alone answers
        self.change = threading.Condition()  # held to read or change the budget and all of these

    def ask(self, messages):
        """-> the answer's text"""
        return self.answer(messages).text

    def answer(self, messages):
        """-> Answer. TeacherError: no more can be asked; ValueError: go on without this one."""
        if self.cache is None:
            return self.complete(messages)

        # from the cache, if it was ever asked
        path = answer_path(self.cache, self.settings, messages)
        if not self.reserve(path, most_tokens(messages, self.max_tokens)):
            return readable(self.kept_answer(path))

        # else from the teacher, and into the cache
        try:
            answer = self.ask_until_answered(messages)
            write_answer(path, messages, answer)
            self.used.add(path)
        except TeacherError as error:
            if not self.workers.interrupted.is_set():
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

    def reserve(self, path, most):
        """Reserves the most that a request can cost once it may be sent; False if it is cached.

        Another thread that asks the very same is waited for, and so are those whose reservations
        leave no room for this one: they may come cheaper.
        """
        reserved = self.budget.reserved
        with self.change:
            while True:
                if path not in reserved and path.exists():
                    return False
                if self.workers.interrupted.is_set():
                    raise TeacherError("stopped")
                if self.stopped_by:
                    raise self.stopped_by.with_traceback(None)
                if path not in reserved and self.budget.fits(most):
                    reserved[path] = most
                    return True
                if not reserved:
                    self.stopped_by = self.limit_reached()
                else:
                    self.change.wait()

    def kept_answer(self, path):
        """From the cache; an earlier run paid for it, and each counts once."""
        with self.change:
            try:
                answer = read_answer(path)
            except TeacherError as error:
                self.stopped_by = error
                raise
            self.from_cache += 1
            if path not in self.used:
                self.used.add(path)
                self.budget.earlier = add(self.budget.earlier, answer.tokens)
        return answer

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

            # how long to wait: what the server says, or at random, so that not all come at once
            if wait is None:
                wait = min(60, self.backoff * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
            if attempt > self.retries or wait > MAX_WAIT:
                asked_for = f", and it asks to wait {wait:.0f} s" if wait > MAX_WAIT else ""
                error = type(error)(f"{error} (tried {attempt} times{asked_for})")
                self.count_failure(error)
                raise error
            tqdm.write(f"teacher: {error}; try {attempt + 1} of {self.retries + 1} in {wait:.1f} s",
                       sys.stderr)
            if self.workers.interrupted.wait(wait):
                raise TeacherError("stopped")
            if not self.budget.fits():  # the failure was billed
                raise self.limit_reached()

    def map(self, function, jobs, description="teacher"):
        """[function(job), ...], several at a time, under a bar that shows what they cost.

        When one raises, or at Ctrl-C, no new one begins; those under way end, and their answers are
        kept; then it is raised. A second Ctrl-C does not wait for them.
        """
        jobs = list(jobs)
        results = [None] * len(jobs)
        try:
            with tqdm(total=len(jobs), desc=description) as bar:
                for number, result in self.workers.results(function, jobs):
                    results[number] = result
                    if any(self.budget.prices):
                        dollars = self.budget.cost(self.budget.spent)
                        bar.set_postfix_str(f"${dollars:.2f}", refresh=False)
                    bar.update()
        except BaseException:
            self.workers.stop()
            self.say_what_is_waited_for()
            self.workers.join()
            raise
        return results

    # ------------------------------------------------------------------------------- what was spent

    def count(self, tokens):
        with self.change:
            self.requests += 1
            self.budget.spent = add(self.budget.spent, tokens)

    def count_failure(self, error):
        with self.change:
            self.failures += 1
            if self.failures >= MAX_FAILURES and not self.stopped_by:
                self.stopped_by = TeacherError(
                    f"{self.failures} requests in a row got no answer, the last one: {error}")

    # ------------------------------------------------------------------------------------- in words

    def spending(self):
        if self.cache is None:
            return "nothing was spent"
        return (f"{self.requests} requests, {self.from_cache} more from the cache; "
                f"{self.budget.in_words(self.budget.spent)} spent")

    def why_stopped(self):
        """Why the last jobs were not asked for, and what to do."""
        if isinstance(self.stopped_by, LimitReached):
            return str(self.stopped_by)
        return f"{self.stopped_by}; {len(self.used)} answers are kept, the same command goes on"

    def limit_reached(self):
        earlier = ""
        if any(self.budget.earlier):
            earlier = f", {self.budget.in_words(self.budget.earlier)} by earlier runs"
        return LimitReached(f"the limit is near: {self.spending()}{earlier}; "
                            "raise it and run again to go on")

    def say_what_is_waited_for(self):
        under_way = len(self.budget.reserved)
        if under_way:
            print(f"stopping: {under_way} requests are under way; their answers are waited for, "
                  "since they are paid for. Ctrl-C leaves them.", file=sys.stderr)


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
