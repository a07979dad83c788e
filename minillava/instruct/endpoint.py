"""One exchange with a server that speaks OpenAI's chat API."""
import email.utils
import http.client
import json
import socket
import threading
import time
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from minillava.instruct.exchange import Answer, BadReply, TeacherError, TryAgain

MAX_REPLY = 4 << 20  # bytes of a whole HTTP reply; one answer has some thousands


class Endpoint:
    """A server's /chat/completions. No redirect is followed: the key goes nowhere else."""

    def __init__(self, base_url, key, settings, timeout=120.0):
        """settings: {"model", "temperature", "max_tokens"}, sent as they are; timeout: seconds of a whole exchange."""
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc or url.query:
            raise ValueError("OPENAI_BASE_URL is an address such as https://api.openai.com/v1, "
                             "without user or query")
        if not all("!" <= character <= "~" for character in key):  # http.client would show it in its error
            raise ValueError("OPENAI_API_KEY holds a character that no key has, "
                             "such as a space or a line end")
        self.scheme = url.scheme
        self.host = url.hostname
        self.port = url.port
        self.path = url.path.rstrip("/") + "/chat/completions"
        self.key = key
        self.settings = settings
        self.timeout = timeout

    def complete(self, messages):
        """-> Answer. TryAgain, BadReply or TeacherError: what to do about it."""
        body = json.dumps({**self.settings, "messages": messages}).encode()
        status, headers, reply = self.post(body)

        said = " ".join(reply[:300].decode(errors="replace").split())
        said = f"{self.host} says HTTP {status}: {said}"
        if status in (408, 429) or status >= 500:
            raise TryAgain(TeacherError(said), seconds_to_wait(headers.get("Retry-After")))
        if status in (400, 413, 422):
            raise BadReply(said)
        if status != 200:
            raise TeacherError(said)
        if len(reply) > MAX_REPLY:
            raise TryAgain(BadReply(f"{self.host} sent more than {MAX_REPLY} bytes"))

        text, tokens = read_completion(reply)
        if not isinstance(text, str) or not text.strip():
            raise TryAgain(BadReply(f"{said}, which is no answer"), tokens=tokens)
        letters = sum(len(message["content"]) for message in messages), len(text)
        prompt, answer = (n or size // 4 + 1 for n, size in zip(tokens, letters))  # where the server counts none
        return Answer(text, prompt, answer)

    def post(self, body):
        """-> status, headers, the first MAX_REPLY + 1 bytes of the reply; should the key be there, it is struck out."""
        start = time.monotonic()
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        connection = self.connect()
        try:
            connection.connect()
            with deadline(connection.sock, self.timeout):
                connection.request("POST", self.path, body, headers)
                response = connection.getresponse()
                content = response.read(MAX_REPLY + 1)
            if response.length and len(content) <= MAX_REPLY:
                raise http.client.IncompleteRead(content, response.length)
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            if time.monotonic() - start >= self.timeout:
                reason = f"no answer within {self.timeout:g} s"
            raise TryAgain(TeacherError(f"{self.host}: {reason}")) from None
        finally:
            connection.close()
        if self.key:
            content = content.replace(self.key.encode(), b"***")
        return response.status, response.headers, content

    def connect(self):
        https = self.scheme == "https"
        kind = http.client.HTTPSConnection if https else http.client.HTTPConnection
        return kind(self.host, self.port, timeout=self.timeout)


@contextmanager
def deadline(sock, seconds):
    """Shuts the socket down after so long; its own timeout starts anew with each byte."""
    timer = threading.Timer(seconds, shut_down, [sock])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def shut_down(sock):
    with suppress(OSError):  # it is closed already
        sock.shutdown(socket.SHUT_RDWR)


def read_completion(reply):
    """A body of any shape -> the answer's text or None, (tokens of the prompt, of the answer)."""
    text, tokens = None, (0, 0)
    with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
        reply = json.loads(reply)
        usage = reply.get("usage") or {}
        tokens = int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))
        text = reply["choices"][0]["message"]["content"]
    return text, tokens


def seconds_to_wait(retry_after):
    """The Retry-After header, a number or a date -> seconds from now; None if there is none."""
    if retry_after and retry_after.isdecimal():
        return float(retry_after)
    date = email.utils.parsedate_tz(retry_after or "")
    return date and max(0.0, email.utils.mktime_tz(date) - time.time())
