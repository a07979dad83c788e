"""A server on loopback that speaks OpenAI's chat API as badly as it is told to."""
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text, finish="stop", usage=(100, 10), **message):
    """The body of a reply; usage: a pair of token counts, or what else stands there."""
    if isinstance(usage, tuple):
        usage = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    message = {"role": "assistant", "content": text, **message}
    choice = {"message": message, "finish_reason": finish}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


def environment(server, **more):
    """Names the server to a command as its endpoint."""
    return {"OPENAI_BASE_URL": server.base_url, "OPENAI_MODEL": "mock", **more}


@contextmanager
def serving(behave):
    """behave(server, request: dict) -> one of
        text                        that answer
        (status, headers, bytes)    just that
        ("slow", seconds)           a byte each hundredth of a second, until then
        ("silent", seconds)         nothing, until then
        ("raw", bytes)              these bytes in place of HTTP
        ("cut",)                    half a reply, then the line is dead
    server.base_url: for OPENAI_BASE_URL; server.requests: the requests so far; server.last_headers: those of the
    last one; server.tunnels: (host:port, headers) of those who wanted one.
    """
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with self.server.lock:
                self.server.requests.append(request)
                self.server.last_headers, self.server.last_path = dict(self.headers), self.path
            done = behave(self.server, request)
            done = (200, {}, completion(done)) if isinstance(done, str) else done
            try:
                if done[0] == "slow":
                    self.send(200, {}, b"", length=1000)
                    end = time.monotonic() + done[1]
                    while time.monotonic() < end:
                        self.wfile.write(b" ")
                        self.wfile.flush()
                        time.sleep(0.01)
                elif done[0] == "silent":
                    time.sleep(done[1])
                elif done[0] == "raw":
                    self.wfile.write(done[1])
                elif done[0] == "cut":
                    self.send(200, {}, completion("half of it")[:40], length=1000)
                else:
                    self.send(*done)
            except OSError:
                pass  # the other side hung up
            self.close_connection = True

        def do_CONNECT(self):  # as a proxy that lets nobody through
            self.server.tunnels.append((self.path, dict(self.headers)))
            self.send(403, {}, b"")
            self.close_connection = True

        def send(self, status, headers, body, length=None):
            self.send_response(status)
            for name, value in {"Content-Length": str(length or len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.lock = True, threading.Lock()
    server.requests, server.tunnels = [], []
    server.base_url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
