"""An HTTP server of files that misbehaves as it is told to, and remembers what it was asked for."""

import contextlib
import functools
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# How one request is answered: the handler, and the whole file.
Answer = Callable[["Handler", bytes], None]


@dataclass
class FlakyServer:
    """Files, and how requests for them are answered.

    Attributes:
        address: of its root.
        files: path -> content.
        headers: path -> headers of proper answers.
        answers: path -> answers, each for one request; when they are used up it behaves.
        requests: (path, Range header or None) of the requests that came.
    """

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)

    def ranges(self, path: str) -> list[str | None]:
        return [asked for asked_path, asked in self.requests if asked_path == path]


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments, state: FlakyServer):
        self.state = state
        super().__init__(*arguments)

    def do_GET(self):
        # Of a proxy the whole address is asked for.
        path = re.sub(r"^http://[^/]+", "", self.path)
        self.state.requests.append((path, self.headers["Range"]))
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        if queue := self.state.answers.get(path):
            queue.pop(0)(self, self.state.files.get(path, b""))
        elif path in self.state.files:
            behave(self, self.state.files[path])
        else:
            status(404)(self, b"")

    do_POST = do_GET

    def head(self, code: int, length: int, **headers: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def handle(self):
        with contextlib.suppress(ConnectionError):  # the client went away
            super().handle()

    def start(self, content: bytes) -> int:
        """Of the bytes asked for, the first."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        return int(asked[1]) if asked else 0

    def log_message(self, *_):
        pass


def behave(handler: Handler, content: bytes, shown: bytes | None = None, cut: int | None = None) -> None:
    """Honours Range; sends `shown` in place of `content`, and no more than `cut` bytes before the line goes dead."""
    start = handler.start(content)
    if start >= len(content) and start:
        handler.head(416, 0, Content_Range=f"bytes */{len(content)}")
        return
    headers = {"Accept-Ranges": "bytes", **handler.state.headers.get(handler.path, {})}
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    handler.head(206 if start else 200, len(content) - start, **headers)
    rest = (shown or content)[start:]
    handler.wfile.write(rest[:cut])
    handler.close_connection = cut is not None


def cut_after(count: int) -> Answer:
    return functools.partial(behave, cut=count)


def corrupted(handler: Handler, content: bytes) -> None:
    """Everything as it should be, but for one bit towards the end."""
    place = len(content) * 3 // 4
    behave(handler, content, content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


def range_ignored(handler: Handler, content: bytes) -> None:
    handler.head(200, len(content))
    handler.wfile.write(content)


def another_range(handler: Handler, content: bytes) -> None:
    handler.head(206, 10, Content_Range=f"bytes 5-14/{len(content)}")
    handler.wfile.write(content[5:15])


def said_longer(handler: Handler, content: bytes) -> None:
    handler.head(200, len(content) + 100)
    handler.wfile.write(content)
    handler.close_connection = True


def said_shorter(handler: Handler, content: bytes) -> None:
    handler.head(200, len(content) - 100)
    handler.wfile.write(content[:-100])


def status(code: int, body: bytes = b"") -> Answer:
    return lambda handler, _: (handler.head(code, len(body)), handler.wfile.write(body))


def stalled_after(count: int, released: threading.Event) -> Answer:
    """Sends so much and then nothing until it is released."""

    def answer(handler: Handler, content: bytes) -> None:
        handler.head(200, len(content), Accept_Ranges="bytes")
        handler.wfile.write(content[:count])
        handler.wfile.flush()
        released.wait()
        handler.close_connection = True

    return answer


@contextlib.contextmanager
def serving() -> Iterator[FlakyServer]:
    """A server on a free port."""
    state = FlakyServer("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, state=state))
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
