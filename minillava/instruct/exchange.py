"""One exchange with a teacher: what it answers, and what can go wrong."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """The text of an answer, and the tokens that were paid for it."""

    text: str
    prompt_tokens: int = 0
    answer_tokens: int = 0


class TeacherError(OSError):
    """The teacher cannot be reached or refuses: no use in going on. What was answered is in the cache."""


class LimitReached(TeacherError):
    """The next answer might cost more than is left."""


class BadReply(ValueError):
    """There is no usable answer to this one request; others may fare better."""


class TryAgain(Exception):
    """Worth another try, after so many seconds if the server says so.

    error: what to raise when the tries run out; tokens: what the failure cost, of prompt and of answer.
    """

    def __init__(self, error, after=None, tokens=(0, 0)):
        self.error = error
        self.after = after
        self.tokens = tokens
