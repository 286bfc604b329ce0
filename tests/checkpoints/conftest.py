from collections.abc import Callable, Iterator
from contextlib import ExitStack
from random import Random

import pytest
from fileserver import FileServer


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FileServer]]:
    """Start file servers: serve(content, etag=...)."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ExitStack() as running:
        yield lambda content, **options: running.enter_context(FileServer(content, **options))


@pytest.fixture
def server(serve: Callable[..., FileServer]) -> FileServer:
    """A server with a file of 300,000 bytes, of which no two stretches are alike."""
    return serve(Random(0).randbytes(300_000))
