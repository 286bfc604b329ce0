"""A web server on the loopback that serves one file and misbehaves on request."""

import re
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Seen:
    """One request, and how many bytes of the file it was answered with."""

    path: str
    headers: dict[str, str]
    sent: int = 0


@dataclass
class FileServer:
    """Serves `content` under every path. Each request is answered by the next entry of `script`, then honestly."""

    content: bytes
    etag: str | None = '"one"'
    last_modified: str | None = None
    script: deque[Callable[["Exchange"], None]] = field(default_factory=deque)
    seen: list[Seen] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/model.safetensors"

    def __enter__(self) -> "FileServer":
        handler = type("Handler", (Exchange,), {"files": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Exchange(BaseHTTPRequestHandler):
    """One request and its answer."""

    files: FileServer

    def do_GET(self) -> None:
        self.seen = Seen(self.path, dict(self.headers))
        self.files.seen.append(self.seen)
        answer = self.files.script.popleft() if self.files.script else honest
        answer(self)

    def log_message(self, *_: object) -> None:
        pass

    def asked_start(self) -> int:
        """Where the client asks to begin."""
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(span[1]) if span else 0

    def right_start(self) -> int:
        """Where to begin: where it asks to, if its copy is of the version that we have."""
        version = self.files.etag or self.files.last_modified
        return self.asked_start() if self.headers.get("If-Range", version) == version else 0

    def head(self, status: int, headers: dict[str, str | None]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def body(self, data: bytes) -> None:
        self.wfile.write(data)
        self.seen.sent += len(data)


def serve(exchange: Exchange, *, start: int | None = None, stop: int | None = None, length: bool = True) -> None:
    """Send the file from `start`, break off before byte `stop`; without `length` the connection's end is its end."""
    files = exchange.files
    start = exchange.right_start() if start is None else start
    total = len(files.content)
    headers = {
        "ETag": files.etag,
        "Last-Modified": files.last_modified,
        "Content-Length": str(total - start) if length else None,
        "Content-Range": f"bytes {start}-{total - 1}/{total}" if start else None,
    }
    exchange.head(206 if start else 200, headers)
    exchange.body(files.content[start:stop])


def honest(exchange: Exchange) -> None:
    serve(exchange)


def breaks_off_at(stop: int) -> Callable[[Exchange], None]:
    return lambda exchange: serve(exchange, stop=stop)


def ignores_ranges(exchange: Exchange) -> None:
    serve(exchange, start=0)


def tells_no_length(exchange: Exchange) -> None:
    serve(exchange, length=False)


def answers(status: int, headers: dict[str, str | None] | None = None, body: bytes = b"") -> Callable[[Exchange], None]:
    """Answer with a status."""

    def answer(exchange: Exchange) -> None:
        exchange.head(status, {"Content-Length": str(len(body)), **(headers or {})})
        exchange.body(body)

    return answer
