"""One exchange with a server that speaks OpenAI's chat API."""
import email.utils
import http.client
import json
import socket
import threading
import time
from contextlib import suppress
from urllib.parse import urlsplit

from minillava.instruct.teacher import Again, BadReply, TeacherError

MAX_REPLY = 4 << 20  # bytes of a whole HTTP reply; one answer has some thousands


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
