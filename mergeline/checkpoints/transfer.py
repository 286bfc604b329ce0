"""What every origin of bytes shares: an opened body, what an earlier attempt left, errors that leak no credentials."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

CHUNK = 1 << 16  # small: what a dropped connection leaves unread in a chunk has to travel again


class TransientError(ConnectionError):
    """A download failed in a way that may heal by itself; the same call, repeated, goes on where it stopped.

    retry_after: seconds that the server asks to wait, where it says so.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Partial:
    """What an earlier attempt left: the first `size` bytes of the version of the file that `validator` stands for."""

    size: int
    validator: str
    total: int | None


@dataclass(frozen=True)
class Body:
    """An opened file elsewhere."""

    chunks: Iterator[bytes]
    start: int  # where in the file the chunks begin: 0, or the size of the partial file they continue
    total: int | None  # bytes of the whole file, where known
    validator: str | None  # differs when the file differs; None: a broken transfer cannot be continued


def shown(uri: str) -> str:
    """The uri without user, password, query and fragment: fit for messages and logs."""
    if "://" not in uri:
        return uri
    return re.split("[?#]", re.sub("://[^/]*@", "://", uri), maxsplit=1)[0]
