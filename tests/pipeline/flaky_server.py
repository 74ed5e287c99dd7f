"""An HTTP file server that fails in scripted ways and records its requests."""

import contextlib
import functools
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Writes the response to one request; the arguments are the handler and the content of the file.
Responder = Callable[["Handler", bytes], None]


@dataclass
class FlakyServer:
    """The files of the server and its scripted responses.

    Attributes:
        address: URL of the root.
        files: Path -> content.
        headers: Path -> headers of correct responses.
        responses: Path -> scripted responses, one per request; after the last one, responses are correct.
        requests: Path and Range header, or None, of each request.
    """

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    responses: dict[str, list[Responder]] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)

    def ranges(self, path: str) -> list[str | None]:
        return [requested_range for requested_path, requested_range in self.requests if requested_path == path]


class Handler(BaseHTTPRequestHandler):
    """Handler of one connection."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments, state: FlakyServer):
        self.state = state
        super().__init__(*arguments)

    def do_GET(self):
        # A request to a proxy contains the whole URL.
        path = re.sub(r"^http://[^/]+", "", self.path)
        self.state.requests.append((path, self.headers["Range"]))
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        if queue := self.state.responses.get(path):
            queue.pop(0)(self, self.state.files.get(path, b""))
        elif path in self.state.files:
            send_file(self, self.state.files[path])
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
        with contextlib.suppress(ConnectionError):  # the client has closed the connection
            super().handle()

    def start(self, content: bytes) -> int:
        """First requested byte."""
        match = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        return int(match[1]) if match else 0

    def log_message(self, *_):
        pass


def send_file(handler: Handler, content: bytes, sent: bytes | None = None, cut: int | None = None) -> None:
    """Send `content`, or the bytes `sent` in place of it, from the requested byte; close after `cut` bytes if set."""
    start = handler.start(content)
    if start >= len(content) and start:
        handler.head(416, 0, Content_Range=f"bytes */{len(content)}")
        return
    headers = {"Accept-Ranges": "bytes", **handler.state.headers.get(handler.path, {})}
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    handler.head(206 if start else 200, len(content) - start, **headers)
    rest = (sent or content)[start:]
    handler.wfile.write(rest[:cut])
    handler.close_connection = cut is not None


def cut_after(count: int) -> Responder:
    return functools.partial(send_file, cut=count)


def corrupted(handler: Handler, content: bytes) -> None:
    """A correct response except for one bit near the end."""
    position = len(content) * 3 // 4
    send_file(handler, content, content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])


def range_ignored(handler: Handler, content: bytes) -> None:
    handler.head(200, len(content))
    handler.wfile.write(content)


def wrong_range(handler: Handler, content: bytes) -> None:
    handler.head(206, 10, Content_Range=f"bytes 5-14/{len(content)}")
    handler.wfile.write(content[5:15])


def content_length_too_large(handler: Handler, content: bytes) -> None:
    handler.head(200, len(content) + 100)
    handler.wfile.write(content)
    handler.close_connection = True


def content_length_too_small(handler: Handler, content: bytes) -> None:
    handler.head(200, len(content) - 100)
    handler.wfile.write(content[:-100])


def status(code: int, body: bytes = b"") -> Responder:
    return lambda handler, _: (handler.head(code, len(body)), handler.wfile.write(body))


def stall_after(count: int, released: threading.Event) -> Responder:
    """Send `count` bytes and then nothing until `released` is set."""

    def respond(handler: Handler, content: bytes) -> None:
        handler.head(200, len(content), Accept_Ranges="bytes")
        handler.wfile.write(content[:count])
        handler.wfile.flush()
        released.wait()
        handler.close_connection = True

    return respond


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
