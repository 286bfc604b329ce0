"""What lies in the content store and beside it, and what of it may go: by age, or the least recently used first.

Nothing that was used since the first of the running processes came is taken (`tasks/usage.py`), and no weights that a
registered version has nowhere else (`tasks/registered_weights.py`). The records of an
artifact go before it does, so that no record names what is not there; and it goes in one rename.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tasks.policy import records_directory
from tasks.registered_weights import needed
from tasks.store import store_directory, sweep
from tasks.usage import evicting, in_use_since, use_note

RECORDS, DOWNLOADS, DRAFTS = "records of stages", "unfinished downloads", "unfinished merges"
_UNITS = {"m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}  # seconds
_DIGEST = re.compile(r"\b[0-9a-f]{64}\b")


class Entry(BaseModel):
    """One thing that may be evicted. used: when it was used last, in seconds since the epoch."""

    model_config = ConfigDict(frozen=True)

    kind: str
    path: Path
    size: int
    used: float

    @property
    def digest(self) -> str:
        """Of an artifact: what records call it."""
        return self.path.name.partition(".")[0]


def entries() -> list[Entry]:
    """All that may be evicted, the least recently used first."""
    found = [*_artifacts(), *_records(), *_unfinished()]
    return sorted(found, key=lambda entry: (entry.used, str(entry.path)))


def evict(
    *, older_than: float | None = None, keep: int | None = None, spared: Collection[str] | None = None
) -> list[Entry]:
    """Remove what was not used for `older_than` seconds, then what is too much for `keep` bytes; returns what went.

    spared: names of artifacts that stay, whatever is asked for; by default what registered versions need.
    """
    if (store_directory() / "tmp").is_dir():
        sweep(store_directory() / "tmp")
    found = entries()
    now, total = time.time(), sum(entry.size for entry in found)
    named = _records_by_artifact()
    spared = needed() if spared is None else spared
    gone: dict[Path, Entry] = {}
    for entry in found:
        old = older_than is not None and now - entry.used >= older_than
        if entry.path not in gone and entry.path.name not in spared and (old or (keep is not None and total > keep)):
            removed = _remove(entry, named[entry.digest])
            gone |= {piece.path: piece for piece in removed}
            total -= sum(piece.size for piece in removed)
    return list(gone.values())


def _remove(entry: Entry, records: Iterable[Path]) -> list[Entry]:
    """Remove an entry, and the records that name it, unless somebody uses it; returns what was removed."""
    with _unheld(entry) as free, evicting():
        now = _reread(entry)
        if not free or now is None or now.used != entry.used or now.used >= in_use_since():
            return []
        if entry.kind in (DRAFTS, DOWNLOADS) and in_use_since() < float("inf"):
            return []  # a run may be going on with it
        removed = [piece for piece in map(_record, records) if piece is not None]
        for piece in removed:
            piece.path.unlink(missing_ok=True)
        aside = Path(tempfile.mkdtemp(dir=_made(store_directory() / "tmp"), prefix=".draft-"))
        entry.path.rename(aside / "evicted")
        if entry.kind not in (RECORDS, DOWNLOADS, DRAFTS):
            use_note(entry.path.name).unlink(missing_ok=True)
    shutil.rmtree(aside)
    return [*removed, entry]


@contextmanager
def _unheld(entry: Entry) -> Iterator[bool]:
    """Whether nobody downloads into it just now; nobody begins to within the block."""
    lock = entry.path.with_name(f"{entry.path.name.strip('.').partition('.')[0]}.lock")
    if entry.kind != DOWNLOADS or not lock.is_file():
        yield True
        return
    handle = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(handle)


# --- what there is ---------------------------------------------------------------------------------------------------


def _artifacts() -> Iterator[Entry]:
    for path in store_directory().glob("[0-9a-f][0-9a-f]/*"):
        if (entry := _artifact(path)) is not None:
            yield entry


def _artifact(path: Path) -> Entry | None:
    note = use_note(path.name)
    with suppress(FileNotFoundError):
        written = path.stat().st_mtime
        kind, used = "other", written
        with suppress(FileNotFoundError):
            kind, used = note.read_text(encoding="utf-8"), note.stat().st_mtime
        return Entry(kind=kind, path=path, size=size_of(path), used=used)
    return None


def _records() -> Iterator[Entry]:
    for path in records_directory().glob("*"):
        if (entry := _record(path)) is not None:
            yield entry


def _record(path: Path) -> Entry | None:
    with suppress(FileNotFoundError):
        status = path.stat()
        return Entry(kind=RECORDS, path=path, size=status.st_size, used=status.st_mtime)
    return None


def _unfinished() -> Iterator[Entry]:
    for kind, folder in ((DOWNLOADS, "incoming"), (DRAFTS, "ranges")):
        for path in (store_directory() / folder).glob("*/"):
            with suppress(FileNotFoundError):
                files = [path, *path.rglob("*")]
                used = max(file.stat().st_mtime for file in files)
                yield Entry(kind=kind, path=path, size=size_of(path), used=used)


def _reread(entry: Entry) -> Entry | None:
    """The entry as it is now; None where it is gone."""
    if entry.kind == RECORDS:
        return _record(entry.path)
    if entry.kind in (DOWNLOADS, DRAFTS):
        return next((found for found in _unfinished() if found.path == entry.path), None)
    return _artifact(entry.path)


def _records_by_artifact() -> dict[str, list[Path]]:
    """Digest -> the records that name it."""
    named: dict[str, list[Path]] = defaultdict(list)
    for path in records_directory().glob("*"):
        with suppress(FileNotFoundError):
            for digest in set(_DIGEST.findall(path.read_text(encoding="utf-8", errors="replace"))):
                named[digest].append(path)
    return named


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 for what is gone."""
    total = 0
    for file in [path, *path.rglob("*")]:
        with suppress(FileNotFoundError):
            total += file.lstat().st_size if file.is_file() else 0
    return total


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# --- ages and sizes as people write them -----------------------------------------------------------------------------


def duration(text: str) -> float:
    """Seconds of `30d` (m, h, d or w). Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text)
    if not found:
        raise ValueError(f"{text!r} is no time: write a number and m, h, d or w, such as 30d")
    return float(found[1]) * _UNITS[found[2]]


def byte_size(text: str) -> int:
    """Bytes of `10GB`. Raises ValueError."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return TypeAdapter(ByteSize).validate_python(text)
    except ValidationError:
        raise ValueError(f"{text!r} is no size: write a number and a unit, such as 10GB") from None


def size_text(size: int) -> str:
    """Bytes as people read them: 8.0KB."""
    from pydantic import ByteSize

    return ByteSize(size).human_readable(decimal=True)


def age_text(moment: float, now: float) -> str:
    """How long ago: 2 days ago."""
    for unit, name in (("d", "days"), ("h", "hours"), ("m", "minutes")):
        if now - moment >= 2 * _UNITS[unit]:
            return f"{(now - moment) / _UNITS[unit]:.0f} {name} ago"
    return "just now"
