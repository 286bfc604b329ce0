"""Who uses the content store, and what of it was used when: what eviction (`tasks/eviction.py`) goes by.

A process that makes a reference to an artifact is a user from then on, until it ends, however it ends: a file in
.store/users that it holds a flock on. Whatever was used since the first of the living users came is theirs.

    .store/users/…      one file per process; its time is when the process came
    .store/used/abcd…   when an artifact was used last (the file's time), and of which kind it is (its text)
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks._env import state_directory
from tasks.locks import exclusive, shared

_present: set[tuple[int, Path]] = set()  # (process, folder): a forked process is a user of its own


@contextmanager
def undisturbed() -> Iterator[None]:
    """Nothing is evicted within this block. This process counts as a user of the store from now on."""
    with shared(_lock_file()):
        _enter()
        yield


@contextmanager
def evicting() -> Iterator[None]:
    """Nobody takes anything into use within this block."""
    with exclusive(_lock_file()):
        yield


def note_use(artifact: str, kind: str) -> None:
    """An artifact is used now; call it within `undisturbed`."""
    note = use_note(artifact)
    try:
        os.utime(note)
    except FileNotFoundError:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(kind, encoding="utf-8")


def use_note(artifact: str) -> Path:
    """The file that tells when an artifact was used last."""
    return _store() / "used" / artifact


def in_use_since() -> float:
    """When the first of the living users came (infinity where there is none); call it within `evicting`."""
    since = float("inf")
    for file in (_store() / "users").glob("*"):
        handle = os.open(file, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.unlink()  # of a process that ended
        except BlockingIOError:
            since = min(since, file.stat().st_mtime)
        finally:
            os.close(handle)
    return since


def _enter() -> None:
    """Hold a file of one's own until the process ends; the handle is never closed."""
    me = os.getpid(), _store()
    if me in _present:
        return
    _present.add(me)
    folder = _store() / "users"
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / f"{os.getpid()}-{os.urandom(4).hex()}", os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(handle, fcntl.LOCK_EX)


def _lock_file() -> Path:
    return _store() / "eviction.lock"


def _store() -> Path:
    return state_directory() / ".store"
