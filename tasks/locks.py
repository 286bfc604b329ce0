"""One holder at a time, by flock(2): the kernel frees a lock when its holder dies, however it dies.

Prefect's own lock files stay behind after a SIGKILL, and whoever comes next waits for ever.
"""

import asyncio
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks._env import state_directory

_POLL_SECONDS = 0.05


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path` (made where missing) for the block; waits for whoever holds it."""
    with _held(path, fcntl.LOCK_EX):
        yield


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Hold it together with others who hold it like this; waits for who holds it alone."""
    with _held(path, fcntl.LOCK_SH):
        yield


@contextmanager
def _held(path: Path, operation: int) -> Iterator[None]:
    handle = _open(path)
    try:
        fcntl.flock(handle, operation)
        yield
    finally:
        os.close(handle)  # closing frees the lock; the file stays, for removing it would race with its next holder


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def _try(handle: int, operation: int) -> bool:
    try:
        fcntl.flock(handle, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class FlockLockManager:
    """Prefect's LockManager protocol: a lock per cache key, between threads and between processes of one machine.

    The files lie in MERGELINE_STATE/.prefect/locks. `hold_timeout` is not needed and ignored.
    """

    def __init__(self) -> None:
        self._held: dict[str, tuple[int, str]] = {}  # key -> (open file, holder)
        self._mutex = threading.Lock()

    def __reduce__(self) -> str:
        return "STAGE_LOCKS"  # pickled and copied by name: there is one table per process

    def acquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        """Take the lock of `key`; False where it was not free within `acquire_timeout` seconds (None: for ever)."""
        if self.is_lock_holder(key, holder):
            return True
        handle = _open(lock_file(key))
        try:
            if acquire_timeout is None:
                fcntl.flock(handle, fcntl.LOCK_EX)
            elif not _before(acquire_timeout, lambda: _try(handle, fcntl.LOCK_EX)):
                os.close(handle)
                return False
        except BaseException:  # Ctrl-C while waiting
            os.close(handle)
            raise
        with self._mutex:
            self._held[key] = (handle, holder)
        return True

    async def aacquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        """As `acquire_lock`, without blocking the event loop."""
        return await asyncio.to_thread(self.acquire_lock, key, holder, acquire_timeout, hold_timeout)

    def release_lock(self, key: str, holder: str) -> None:
        """Free the lock of `key`; ValueError where `holder` does not hold it."""
        with self._mutex:
            if not self._is_held_by(key, holder):
                raise ValueError(f"{holder} does not hold the lock of {key}")
            handle, _ = self._held.pop(key)
        os.close(handle)

    def is_locked(self, key: str) -> bool:
        """Does anybody, in any process, hold the lock of `key`?"""
        try:
            handle = os.open(lock_file(key), os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            return not _try(handle, fcntl.LOCK_SH)
        finally:
            os.close(handle)

    def is_lock_holder(self, key: str, holder: str) -> bool:
        """Does `holder`, in this process, hold the lock of `key`?"""
        with self._mutex:
            return self._is_held_by(key, holder)

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Wait until nobody holds the lock of `key`; False where that took longer than `timeout` seconds."""
        return _before(timeout, lambda: not self.is_locked(key))

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """As `wait_for_lock`, without blocking the event loop."""
        return await asyncio.to_thread(self.wait_for_lock, key, timeout)

    def _is_held_by(self, key: str, holder: str) -> bool:
        return key in self._held and self._held[key][1] == holder


STAGE_LOCKS = FlockLockManager()


def lock_file(key: str) -> Path:
    """The file whose lock stands for a key."""
    return state_directory() / ".prefect" / "locks" / f"{hashlib.sha256(key.encode()).hexdigest()}.lock"


def _before(timeout: float | None, done: Callable[[], bool]) -> bool:
    """Ask until it is done, at least once; False where `timeout` seconds passed first."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while not done():
        if deadline is not None and time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
