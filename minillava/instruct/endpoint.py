"""One exchange with a server that speaks OpenAI's chat API.

Nothing that it sends is trusted: not the size, the JSON, the token counts, nor the text.
"""
import email.utils
import http.client
import json
import re
import socket
import threading
import time
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from minillava.instruct.budget import estimate
from minillava.instruct.exchange import Answer, BadReply, TeacherError, TryAgain
from minillava.instruct.proxy import connect, proxy_for
from minillava.terminal import printable

MAX_REPLY = 4 << 20  # bytes of a whole HTTP reply; one answer has some thousands
MAX_TOKENS = 10**8   # a server that says it took more is not believed
SECRET = 12          # letters of the shortest key that is a secret; servers at home want an "x"


class Endpoint:
    """A server's /chat/completions. No redirect is followed: the key goes nowhere else."""

    def __init__(self, base_url, key, settings, timeout=120.0):
        """settings: "model" and what else is sent along; timeout: seconds of a whole exchange."""
        url = urlsplit(base_url)
        if (url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc
                or url.query or not is_plain(base_url)):
            raise ValueError("OPENAI_BASE_URL is an address such as https://api.openai.com/v1, "
                             "without user, query or spaces")
        if not is_plain(key):  # http.client would show it in its error
            raise ValueError("OPENAI_API_KEY holds a character that no key has, "
                             "such as a space or a line end")
        self.url = url
        self.path = url.path.rstrip("/") + "/chat/completions"
        self.port = url.port  # ValueError if it is none
        self.proxy = proxy_for(url.scheme, url.hostname)
        self.key = key
        self.secret = secret_pattern(key)
        self.settings = settings
        self.timeout = timeout

    def complete(self, messages):
        """-> Answer. TryAgain, BadReply or TeacherError: what to do about it."""
        status, headers, body = self.post(json.dumps({**self.settings, "messages": messages}))
        said = f"{self.url.hostname} says HTTP {status}: {one_line(body)}"
        said += self.advice(status, body)
        if status == 200:
            return answer_in(body, messages, said)
        wait = seconds_to_wait(headers.get("Retry-After"))
        if status == 429:
            raise TryAgain(TeacherError(said), wait)
        if status == 408 or status >= 500:
            raise TryAgain(BadReply(said), wait)
        if status in (400, 413, 422):
            raise BadReply(said)
        raise TeacherError(said)

    def post(self, body):
        """-> status, headers, text of the reply, in which the key is struck out"""
        connection, headers = connect(self.url.scheme, self.url.hostname, self.port, self.proxy,
                                      self.timeout)
        headers = headers | {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        target = self.path
        if self.proxy and self.url.scheme == "http":
            target = f"http://{self.url.netloc}{self.path}"

        start = time.monotonic()
        blame = TeacherError  # until the line stands, trouble is with the server
        try:
            connection.connect()
            blame = BadReply  # then it is with this request
            with deadline(connection.sock, self.timeout):
                connection.request("POST", target, body.encode(), headers)
                response = connection.getresponse()
                content = response.read(MAX_REPLY + 1)
            if len(content) > MAX_REPLY:
                raise http.client.HTTPException(f"it sent more than {MAX_REPLY} bytes")
            if response.length:
                raise http.client.IncompleteRead(content, response.length)
        except (OSError, http.client.HTTPException) as error:
            reason = one_line(self.without_key(str(error))) or type(error).__name__
            if time.monotonic() - start >= self.timeout:
                reason = f"no answer within {self.timeout:g} s"
            raise TryAgain(blame(f"{self.url.hostname}: {reason}")) from None
        finally:
            connection.close()
        return response.status, response.headers, self.without_key(content.decode(errors="replace"))

    def without_key(self, text):
        return self.secret.sub("***", text) if self.key else text

    def advice(self, status, body):
        if status in (200, 404, 405) and "/v1" not in self.path:
            return " (OPENAI_BASE_URL is without the /v1 that most servers want)"
        if status == 400 and "max_completion_tokens" in body:
            return " (--token-field max_completion_tokens is for such models)"
        if status == 400 and "temperature" in body:
            return " (--no-send-temperature is for such models)"
        return ""


# ------------------------------------------------------------------------------------- the reply

def answer_in(body, messages, said):
    """The JSON of a reply -> Answer; said: the same in words, for an error."""
    message, reason, usage = read_completion(body)
    text = message.get("content")
    text = text if isinstance(text, str) else ""
    letters = sum(len(message["content"]) for message in messages)
    tokens = (token_count(usage.get("prompt_tokens"), letters),
              token_count(usage.get("completion_tokens"), len(text)))

    if isinstance(message.get("refusal"), str):
        raise BadReply(f"refused: {one_line(message['refusal'])}", tokens)
    cut = reason if reason in ("length", "content_filter") else None
    if text.strip():
        return Answer(text, tokens, cut)
    if cut:  # another try would fare no better
        raise BadReply(f"nothing was written before the answer was cut off ({cut})", tokens)
    raise TryAgain(BadReply(f"{said}, which is no answer", tokens))


def read_completion(body):
    """A body of any shape -> the message, why it ended, what it cost; empty where it is no JSON."""
    try:
        reply = json.loads(body)
        choice = reply["choices"][0]
        message = choice["message"]
        usage = reply.get("usage")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}, None, {}
    if not isinstance(message, dict):
        return {}, None, {}
    return message, choice.get("finish_reason"), usage if isinstance(usage, dict) else {}


def token_count(stated, letters):
    """What the server counted, if that can be true; else an estimate."""
    if type(stated) is int and 0 < stated < MAX_TOKENS:
        return stated
    return estimate(letters)


def seconds_to_wait(retry_after):
    """The Retry-After header, a number or a date -> seconds from now; None if there is none."""
    if retry_after and retry_after.isdecimal():
        return float(retry_after)
    date = email.utils.parsedate_tz(retry_after or "")
    return date and max(0.0, email.utils.mktime_tz(date) - time.time())


# -------------------------------------------------------------------------------------- the line

def one_line(text):
    """The first 300 characters of a text from outside, fit for a terminal."""
    return printable(" ".join(text[:300].split()), keep="")


def is_plain(text):
    return all("!" <= character <= "~" for character in text)


def secret_pattern(key):
    r"""Finds the key in a text, "sk-1" also as JSON may write it, `sk\u002d1`.

    A key that is too short to be a secret would be found in many a word: it must follow "Bearer".
    """
    letters = "".join(rf"(?:\\?{re.escape(letter)}|(?i:\\u{ord(letter):04x}))" for letter in key)
    return re.compile(letters if len(key) >= SECRET else rf"(?<=Bearer ){letters}(?![\w-])")


@contextmanager
def deadline(sock, seconds):
    """Shuts the socket down after so long; its own timeout starts anew with each byte."""
    timer = threading.Timer(seconds, shut_down, [sock])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def shut_down(sock):
    with suppress(OSError):  # it is closed already
        sock.shutdown(socket.SHUT_RDWR)
