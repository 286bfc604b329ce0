"""Files that appear under their name complete or not at all."""

import hashlib
import os
from pathlib import Path


def publish(temporary: Path, final: Path) -> None:
    """Give a finished file its final name, in a way that survives a power cut: bytes first, then the name."""
    sync(temporary)
    temporary.replace(final)
    sync(final.parent)


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
