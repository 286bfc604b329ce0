"""A web server on the loopback with models: plain files, or a repository of a hub."""

import hashlib
import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Site:
    """A web server on the loopback over a folder: what was asked, and what is to fail."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        self.failing: dict[str, int] = {}  # end of a path -> status
        self.page = False  # answers what is not there with a page

    def __enter__(self) -> "Site":
        site = self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args: object) -> None:
                super().__init__(*args, directory=str(site.root))  # type: ignore[arg-type]

            def do_GET(self) -> None:
                site.asked.append(self.path)
                path = urlsplit(self.path).path
                status = next((status for end, status in site.failing.items() if path.endswith(end)), None)
                if status:
                    self.send_error(status)
                elif path.startswith("/api/models/org/repo/revision/"):
                    self.answer(json.dumps(site.repository()).encode())
                elif site.page and not (site.root / path.lstrip("/")).exists():
                    self.answer(b"<!DOCTYPE html><html>Not found</html>")
                else:
                    super().do_GET()

            def answer(self, content: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def repository(self) -> dict[str, object]:
        """What the hub says of a repository: commit, files, and the digests of the large ones."""
        root = self.root / "org" / "repo" / "resolve" / COMMIT
        siblings = []
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            file: dict[str, object] = {"rfilename": path.relative_to(root).as_posix(), "size": path.stat().st_size}
            if path.suffix == ".safetensors":
                file["lfs"] = {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            siblings.append(file)
        return {"sha": COMMIT, "siblings": siblings}

    def files_asked(self) -> list[str]:
        return sorted(urlsplit(path).path.rpartition("/")[2] for path in self.asked)
