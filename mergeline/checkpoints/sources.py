"""Download a checkpoint: resumed after a broken connection, verified, and under its name only when complete.

The file grows as `<name>.part`; `<name>.part.json` beside it remembers which version of the file the part belongs to.
The empty `.<name>.lock` keeps other processes out and stays: removing a lock file would let two of them in.
"""

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from hashlib import sha256 as hash_of
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filelock import FileLock

from mergeline.checkpoints.atomic import publish, sha256_of
from mergeline.checkpoints.filesystem import open_file
from mergeline.checkpoints.hub import open_hub
from mergeline.checkpoints.transfer import Body, Partial, TransientError, shown
from mergeline.checkpoints.web import open_web
from mergeline.errors import InputError

__all__ = ["TransientError", "fetch"]

Progress = Callable[[int, int | None], None]


def fetch(
    uri: str,
    destination: str | Path,
    *,
    sha256: str | None = None,
    max_bytes: int | None = None,
    progress: Progress | None = None,
    keep: bool = False,
) -> Path:
    """Copy one file from a path, file://, http(s)://, hf://org/repo@revision/file or any fsspec URL to `destination`.

    sha256: expected digest; a file already there that has it is kept without asking anyone.
    max_bytes: refuse anything larger. progress: called with (bytes so far, bytes in all or None) after each chunk.
    keep: note beside the file which version it is (`<name>.whole.json`), and keep one that a note says is still it.
    One attempt: a caller repeats it after a TransientError (connection, timeout, truncation, 429, 5xx; `.retry_after`
    seconds where the server says so), and it goes on where it stopped. Raises InputError for all that repeating does
    not mend: bad address, missing file, refusal, wrong digest, too large. Only one process at a time works on a
    destination; the others wait. Returns `destination`.
    """
    name, destination = shown(uri), Path(destination)
    pin = checked_pin(sha256, name)
    if destination.is_dir():
        raise InputError(f"{name}: the destination {destination} is a folder; give the name of a file in it")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(destination.with_name(f".{destination.name}.lock")):
        if pin and destination.is_file() and sha256_of(destination) == pin:
            return destination
        part = _Part(uri, destination)
        if keep and not pin and part.is_whole(destination):
            return destination
        part.receive(max_bytes, progress)
        part.verify(pin)
        part.publish(destination, keep)
    return destination


def stated_size(uri: str) -> int | None:
    """What the source of one file says how many bytes it has; only the beginning of an answer is read, if any.

    Raises InputError and TransientError as `fetch` does.
    """
    with _open(uri, None) as body:
        return body.total


def checked_pin(sha256: str | None, name: str) -> str | None:
    """An expected digest in small letters. Raises InputError for what is none."""
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise InputError(f"{name}: sha256 '{sha256}' is not a digest; it has 64 hexadecimal digits")
    return sha256 and sha256.lower()


def _open(uri: str, partial: Partial | None) -> AbstractContextManager[Body]:
    scheme = uri.partition("://")[0].lower() if "://" in uri else "path"
    if scheme in ("http", "https"):
        return open_web(uri, partial)
    if scheme == "hf":
        return open_hub(uri, partial)
    if scheme == "file":
        return open_file(path_of(uri), partial, name=shown(uri))
    return open_file(uri, partial)


def path_of(uri: str) -> str:
    """The local path of a file:// uri. Raises InputError for one that names another machine."""
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"{shown(uri)}: names another machine; a local file is written file:///folder/file")
    return url2pathname(parts.path)


class _Part:
    """The growing file of one destination, and the record of what it is a part of."""

    def __init__(self, uri: str, destination: Path) -> None:
        self.uri = uri
        self.name = shown(uri)
        self.path = destination.with_name(destination.name + ".part")
        self.record = destination.with_name(destination.name + ".part.json")
        self.whole = destination.with_name(destination.name + ".whole.json")

    def receive(self, max_bytes: int | None, progress: Progress | None) -> None:
        """Read the file to its end, after the bytes that are here already. Raises as `fetch` does."""
        with _open(self.uri, self._left_over()) as body:
            self._refuse_above(max_bytes, body.total)
            with self.path.open("ab" if body.start else "wb") as file:
                if not body.start:
                    self._remember(body)
                size = body.start
                for chunk in body.chunks:
                    size += len(chunk)
                    self._refuse_above(max_bytes, size)
                    file.write(chunk)
                    if progress:
                        progress(size, body.total)
        if body.total is not None and size != body.total:
            if size > body.total:  # it changed while we read: nothing to go on with
                self.discard()
            raise TransientError(f"{self.name}: {size} bytes arrived of {body.total}; try again")

    def verify(self, pin: str | None) -> None:
        """Compare the digest with the expected one. Raises InputError and forgets the file where they differ."""
        if pin and (found := sha256_of(self.path)) != pin:
            self.discard()
            raise InputError(
                f"{self.name}: has sha256 {found}, expected {pin}; it is not the file that was pinned: "
                "check the address, or pin the new digest if you trust the new file"
            )

    def publish(self, destination: Path, keep: bool) -> None:
        publish(self.path, destination)
        if keep:
            self.record.replace(self.whole)
        self.discard()

    def is_whole(self, destination: Path) -> bool:
        """Whether an earlier call brought the file whole, and the source says that it is still that version."""
        try:
            note = json.loads(self.whole.read_text())
            here = (note["uri"], note["validator"], destination.stat().st_size)
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return False
        with _open(self.uri, None) as body:
            return here == (self._address(), body.validator, body.total) and body.validator is not None

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)

    def _refuse_above(self, max_bytes: int | None, size: int | None) -> None:
        if max_bytes is not None and size is not None and size > max_bytes:
            self.discard()
            raise InputError(
                f"{self.name}: has {size} bytes or more, {max_bytes} are allowed; raise the limit or check it"
            )

    def _remember(self, body: Body) -> None:
        """Note which version of which file the part begins; the address only as a digest, for it may hold secrets."""
        note = {"uri": self._address(), "validator": body.validator, "total": body.total}
        self.record.write_text(json.dumps(note))

    def _left_over(self) -> Partial | None:
        """What an earlier attempt left of the same file, if it can be continued."""
        try:
            note = json.loads(self.record.read_text())
            address, partial = note["uri"], Partial(self.path.stat().st_size, note["validator"], note["total"])
        except (FileNotFoundError, ValueError, TypeError, KeyError):  # none there, or the record is damaged
            return None
        return partial if address == self._address() and partial.validator is not None else None

    def _address(self) -> str:
        return hash_of(self.uri.encode()).hexdigest()
