"""One exchange with a teacher: what it answers, and what can go wrong."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """The text of an answer, and what was paid for it."""

    text: str
    tokens: tuple = (0, 0)   # of the prompt, of the answer
    cut: str | None = None   # why it stops before its end: "length" or "content_filter"


class TeacherError(OSError):
    """The teacher cannot be reached, or turns us away: no use in asking more."""

    tokens = (0, 0)


class LimitReached(TeacherError):
    """The next answer might cost more than is left."""


class BadReply(ValueError):
    """No usable answer to this one request; others may fare better. tokens: what it cost."""

    def __init__(self, message, tokens=(0, 0)):
        super().__init__(message)
        self.tokens = tokens


class TryAgain(Exception):
    """Worth another try, after so many seconds if the server says so.

    error: the TeacherError or BadReply to raise when the tries run out.
    """

    def __init__(self, error, after=None):
        self.error = error
        self.after = after
