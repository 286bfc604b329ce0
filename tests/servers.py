"""Real servers on loopback, started as users start them, each in a session of its own that is killed as a whole."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests


def free_port() -> int:
    """A port that nobody has just now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def server(*command: str, port: int, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m COMMAND` that answers at /health or /api/health; killed at the end where it still lives."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=os.environ | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while not any(_answers(f"http://127.0.0.1:{port}{page}") for page in ("/health", "/api/health")):
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        yield process
    finally:
        kill(process)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL, for its workers too."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False
