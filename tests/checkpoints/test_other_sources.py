"""Checkpoints from paths, fsspec file systems and the Hugging Face hub."""

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import huggingface_hub.constants as hub_constants
import pytest
from fileserver import FileServer, answers, breaks_off_at
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

from mergeline.checkpoints.folders import fetch_checkpoint
from mergeline.checkpoints.hub import parse_hub
from mergeline.checkpoints.sources import TransientError, fetch
from mergeline.checkpoints.transfer import shown
from mergeline.errors import InputError

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    """fsspec's file system in memory, which is one for the whole process."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def test_a_local_path_is_copied(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(CONTENT)
    got = fetch(str(tmp_path / "source"), tmp_path / "copy", sha256=hashlib.sha256(CONTENT).hexdigest())
    assert got.read_bytes() == CONTENT
    assert (tmp_path / "source").read_bytes() == CONTENT


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "source").write_bytes(CONTENT)
    assert fetch("~/source", tmp_path / "copy").read_bytes() == CONTENT


def test_a_file_url_is_unquoted(tmp_path: Path) -> None:
    source = tmp_path / "a model #1?.bin"
    source.write_bytes(CONTENT)
    assert fetch(source.as_uri(), tmp_path / "copy").read_bytes() == CONTENT


def test_a_file_url_of_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="file://nas/model: names another machine"):
        fetch("file://nas/model", tmp_path / "copy")


@pytest.mark.parametrize("uri", ["missing/model.safetensors", "memory://missing", "file:///missing"])
def test_a_missing_file_is_permanent(memory: MemoryFileSystem, tmp_path: Path, uri: str) -> None:
    with pytest.raises(InputError, match=f"{uri.removeprefix('file://')}: there is no such file"):
        fetch(uri, tmp_path / "copy")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(InputError, match="source: is a folder"):
        fetch(str(tmp_path / "source"), tmp_path / "copy")


def test_a_folder_as_destination_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        fetch("source", tmp_path)


def test_any_fsspec_url_is_read(memory: MemoryFileSystem, tmp_path: Path) -> None:
    memory.pipe("/zoo/model.safetensors", CONTENT)
    assert fetch("memory://zoo/model.safetensors", tmp_path / "copy").read_bytes() == CONTENT


def test_an_unknown_scheme_is_refused_with_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gopher://hole/model: unknown kind of address; use a path, https://, hf://"):
        fetch("gopher://hole/model", tmp_path / "copy")


def test_an_address_that_cannot_be_taken_apart_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the address leads nowhere") as error:
        fetch_checkpoint("http://me:secretive@[::1/model.pt", tmp_path / "copy")
    assert "secretive" not in str(error.value)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need = {"class": "tapefs_is_not_here.Tape", "err": "Install tapefs to read tapes"}
    monkeypatch.setitem(known_implementations, "tape", need)
    with pytest.raises(InputError, match="package that is not installed: Install tapefs to read tapes"):
        fetch("tape://1/model", tmp_path / "copy")


class FlakyFile:
    """An opened file that fails at its second reading, and remembers where it was asked to begin."""

    starts: list[int]

    def __init__(self, content: bytes, starts: list[int], error: Exception) -> None:
        self._content, self._position, self._error = content, 0, error
        self.starts = starts

    def __enter__(self) -> "FlakyFile":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def seek(self, position: int) -> None:
        self.starts.append(position)
        self._position = position

    def read(self, size: int) -> bytes:
        if self._position > self.starts[-1]:
            raise self._error
        chunk = self._content[self._position : self._position + size]
        self._position += len(chunk)
        return chunk


def test_missing_credentials_do_not_pass_by_themselves(
    memory: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise type("NoCredentialsError", (Exception,), {})()

    memory.pipe("/model", CONTENT)
    monkeypatch.setattr(MemoryFileSystem, "open", refuse)
    with pytest.raises(InputError, match="memory://model: needs credentials, and none are set"):
        fetch("memory://model", tmp_path / "copy")


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), TimeoutError(), RuntimeError("key=s3cret")])
def test_a_file_system_that_fails_midway_is_continued(
    memory: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    memory.pipe("/model", CONTENT)
    starts: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "open", lambda *_: FlakyFile(CONTENT, starts, error))
        for _ in range(2):
            with pytest.raises(TransientError, match="memory://model: cannot be read now") as caught:
                fetch("memory://model", tmp_path / "copy")
            assert "s3cret" not in str(caught.value)
    assert starts[0] == 0 < starts[1]
    seen: list[int] = []
    fetch("memory://model", tmp_path / "copy", progress=lambda done, _: seen.append(done))
    assert seen[0] > 2 * starts[1]
    assert (tmp_path / "copy").read_bytes() == CONTENT


def test_a_file_that_ends_early_is_continued(
    memory: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("/model", CONTENT)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "open", lambda *_: io.BytesIO(CONTENT[:1000]))
        with pytest.raises(TransientError, match=f"memory://model: 1000 bytes arrived of {len(CONTENT)}; try again"):
            fetch("memory://model", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert (tmp_path / "copy.part").stat().st_size == 1000
    assert fetch("memory://model", tmp_path / "copy").read_bytes() == CONTENT


def test_a_file_that_grew_while_it_was_read_is_given_up(
    memory: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("/model", CONTENT)
    monkeypatch.setattr(MemoryFileSystem, "open", lambda *_: io.BytesIO(CONTENT + b"more"))
    with pytest.raises(TransientError, match="256004 bytes arrived of 256000"):
        fetch("memory://model", tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == [".copy.lock"]


def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(CONTENT)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(str(source), tmp_path / "copy", progress=interrupt)
    assert (tmp_path / "copy.part").stat().st_size > 0
    source.write_bytes(CONTENT[::-1] + b"!")
    assert fetch(str(source), tmp_path / "copy").read_bytes() == CONTENT[::-1] + b"!"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("hf://org/repo/model.safetensors", ("org/repo", "main", "model.safetensors")),
        ("hf://org/repo@v1.0/model.safetensors", ("org/repo", "v1.0", "model.safetensors")),
        ("hf://org/repo@refs%2Fpr%2F1/deep/model.safetensors", ("org/repo", "refs/pr/1", "deep/model.safetensors")),
        ("hf://org/repo/a@b.bin", ("org/repo", "main", "a@b.bin")),
    ],
)
def test_a_hub_address_has_repository_revision_and_file(uri: str, expected: tuple[str, str, str]) -> None:
    assert parse_hub(uri) == expected


@pytest.mark.parametrize(
    "uri", ["hf://", "hf://repo", "hf://org/repo", "hf://org/repo@main", "hf://org/repo@/file", "hf://org/repo/../../x"]
)
def test_a_hub_address_of_another_form_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hf://organisation/repository@revision/file"):
        fetch(uri, tmp_path / "copy")


def test_a_repository_name_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hf://-org/repo/file: Repo id"):
        fetch("hf://-org/repo/file", tmp_path / "copy")


@pytest.fixture
def hub(serve: Callable[..., FileServer], monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """A hub of our own, with a token to show to it."""
    server = serve(CONTENT)
    endpoint = f"http://127.0.0.1:{server.port}"
    monkeypatch.setattr(hub_constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    return server


def test_a_hub_file_is_asked_for_with_revision_and_token(hub: FileServer, tmp_path: Path) -> None:
    fetch("hf://org/repo@refs%2Fpr%2F1/deep/model.bin", tmp_path / "copy")
    assert hub.seen[0].path == "/org/repo/resolve/refs%2Fpr%2F1/deep/model.bin"
    assert hub.seen[0].headers["Authorization"] == "Bearer hf_s3cret"
    assert (tmp_path / "copy").read_bytes() == CONTENT


def test_a_hub_file_is_continued_behind_a_redirect_that_gets_no_token(
    hub: FileServer, serve: Callable[..., FileServer], tmp_path: Path
) -> None:
    elsewhere = serve(CONTENT)
    hub.script.extend([answers(302, {"Location": elsewhere.url + "?signature=1"})] * 2)
    elsewhere.script.append(breaks_off_at(200_000))
    with pytest.raises(TransientError, match="hf://org/repo"):
        fetch("hf://org/repo/model.bin", tmp_path / "copy")
    fetch("hf://org/repo/model.bin", tmp_path / "copy")
    assert elsewhere.seen[1].sent < len(CONTENT)
    assert not any("authorization" in {name.lower() for name in seen.headers} for seen in elsewhere.seen)
    assert (tmp_path / "copy").read_bytes() == CONTENT


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_of_the_hub_says_what_to_check(hub: FileServer, tmp_path: Path, status: int) -> None:
    hub.script.append(answers(status))
    with pytest.raises(
        InputError, match=f"hf://org/repo/model.bin: .* {status} .*repository, revision.*HF_TOKEN"
    ) as caught:
        fetch("hf://org/repo/model.bin", tmp_path / "copy")
    assert "hf_s3cret" not in str(caught.value)


def test_a_busy_hub_is_transient(hub: FileServer, tmp_path: Path) -> None:
    hub.script.append(answers(429, {"Retry-After": "3"}))
    with pytest.raises(TransientError) as caught:
        fetch("hf://org/repo/model.bin", tmp_path / "copy")
    assert caught.value.retry_after == 3


def test_offline_a_cached_hub_file_is_taken(hub: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "cache" / "models--org--repo" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.bin").write_bytes(CONTENT)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert fetch("hf://org/repo/model.bin", tmp_path / "copy").read_bytes() == CONTENT
    with pytest.raises(InputError, match=r"unset HF_HUB_OFFLINE.*hf download org/repo other\.bin"):
        fetch("hf://org/repo/other.bin", tmp_path / "other")
    assert hub.seen == []


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://me:pw@host/a/b?sig=1#x", "https://host/a/b"),
        ("https://me:p@w?#@host/a", "https://host/a"),
        ("zip://a.bin::https://me:pw@host/z.zip", "zip://a.bin::https://host/z.zip"),
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("hf://org/repo@main/file", "hf://org/repo@main/file"),
        ("data/zoo/a?b#c@d", "data/zoo/a?b#c@d"),
    ],
)
def test_messages_show_an_address_without_its_secrets(uri: str, expected: str) -> None:
    assert shown(uri) == expected
