"""Downloads from a web server that breaks off, refuses, lies and changes its mind."""

import hashlib
import pickle
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from fileserver import (
    Exchange,
    FileServer,
    answers,
    breaks_off_at,
    ignores_ranges,
    tells_no_length,
)

from mergeline.checkpoints import web
from mergeline.checkpoints.sources import TransientError, fetch
from mergeline.errors import InputError


@pytest.fixture
def nobody() -> str:
    """An address on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}/model.safetensors"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def part_size(folder: Path) -> int:
    return (folder / "model.part").stat().st_size


def break_off(server: FileServer, folder: Path, at: int = 200_000) -> int:
    """Let a download of server's file fail midway; returns how many bytes of it lie in `folder` then."""
    server.script.append(breaks_off_at(at))
    with pytest.raises(TransientError, match="try again"):
        fetch(server.url, folder / "model")
    assert not (folder / "model").exists()
    assert 0 < part_size(folder) <= at
    return part_size(folder)


def test_a_file_arrives_whole_and_alone(server: FileServer, tmp_path: Path) -> None:
    got = fetch(server.url, tmp_path / "new" / "model", sha256=sha256(server.content).upper())
    assert got == tmp_path / "new" / "model"
    assert got.read_bytes() == server.content
    assert visible(got.parent) == ["model"]


def test_progress_counts_up_to_the_length(server: FileServer, tmp_path: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    fetch(server.url, tmp_path / "model", progress=lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert calls[-1] == (300_000, 300_000)


def test_a_broken_download_goes_on_where_it_stopped(server: FileServer, tmp_path: Path) -> None:
    have = break_off(server, tmp_path)
    calls: list[int] = []
    fetch(server.url, tmp_path / "model", sha256=sha256(server.content), progress=lambda done, _: calls.append(done))
    assert server.seen[1].headers["Range"] == f"bytes={have}-"
    assert server.seen[1].headers["If-Range"] == '"one"'
    assert server.seen[1].sent == len(server.content) - have
    assert calls[0] > have
    assert (tmp_path / "model").read_bytes() == server.content
    assert visible(tmp_path) == ["model"]


def test_it_goes_on_after_several_breaks(server: FileServer, tmp_path: Path) -> None:
    sizes = [break_off(server, tmp_path, at) for at in (80_000, 160_000, 240_000)]
    assert sizes == sorted(set(sizes))
    fetch(server.url, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == server.content
    assert server.seen[-1].sent == len(server.content) - sizes[-1]


def test_last_modified_serves_where_there_is_no_strong_etag(serve: Callable[..., FileServer], tmp_path: Path) -> None:
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    server = serve(b"x" * 300_000, etag=None, last_modified=date)
    have = break_off(server, tmp_path)
    fetch(server.url, tmp_path / "model")
    assert server.seen[1].headers["If-Range"] == date
    assert server.seen[1].sent == 300_000 - have


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_validator_it_begins_again(
    serve: Callable[..., FileServer], tmp_path: Path, etag: str | None
) -> None:
    server = serve(b"x" * 300_000, etag=etag)
    break_off(server, tmp_path)
    fetch(server.url, tmp_path / "model")
    assert "Range" not in server.seen[1].headers
    assert (tmp_path / "model").read_bytes() == server.content


def test_it_begins_again_where_the_server_ignores_ranges(server: FileServer, tmp_path: Path) -> None:
    break_off(server, tmp_path)
    server.script.append(ignores_ranges)
    fetch(server.url, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == server.content
    assert len(server.seen) == 2


def test_it_begins_again_where_the_file_changed(server: FileServer, tmp_path: Path) -> None:
    break_off(server, tmp_path)
    server.content, server.etag = b"another file", '"two"'
    fetch(server.url, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == b"another file"


def changed_but_continued(exchange: Exchange) -> None:
    start = exchange.asked_start()
    exchange.head(206, {"ETag": '"two"', "Content-Range": f"bytes {start}-299999/300000"})
    exchange.body(b"x" * (300_000 - start))


def other_length(exchange: Exchange) -> None:
    start = exchange.asked_start()
    exchange.head(206, {"ETag": '"one"', "Content-Range": f"bytes {start}-399999/400000"})


def other_start(exchange: Exchange) -> None:
    exchange.head(206, {"ETag": '"one"', "Content-Range": "bytes 7-299999/300000"})


def no_range_named(exchange: Exchange) -> None:
    exchange.head(206, {"ETag": '"one"'})


@pytest.mark.parametrize(
    "answer", [changed_but_continued, other_length, other_start, no_range_named, answers(416)], ids=lambda a: a.__name__
)
def test_a_continuation_that_does_not_fit_is_not_used(
    server: FileServer, tmp_path: Path, answer: Callable[[Exchange], None]
) -> None:
    break_off(server, tmp_path)
    server.script.append(answer)
    fetch(server.url, tmp_path / "model", sha256=sha256(server.content))
    assert "Range" not in server.seen[2].headers
    assert (tmp_path / "model").read_bytes() == server.content


def test_the_part_of_one_address_is_not_continued_with_another(server: FileServer, tmp_path: Path) -> None:
    break_off(server, tmp_path)
    fetch(server.url + "?other", tmp_path / "model")
    assert "Range" not in server.seen[1].headers


@pytest.mark.parametrize("record", ['{"uri": "9f', "{}", "[]"])
def test_a_damaged_record_only_costs_the_part(server: FileServer, tmp_path: Path, record: str) -> None:
    break_off(server, tmp_path)
    (tmp_path / "model.part.json").write_text(record)
    fetch(server.url, tmp_path / "model")
    assert "Range" not in server.seen[1].headers
    assert (tmp_path / "model").read_bytes() == server.content


def test_a_file_of_unknown_length_is_read_to_its_end(server: FileServer, tmp_path: Path) -> None:
    server.script.append(tells_no_length)
    totals = []
    fetch(server.url, tmp_path / "model", progress=lambda _, total: totals.append(total))
    assert (tmp_path / "model").read_bytes() == server.content
    assert set(totals) == {None}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:30:00 GMT", "Date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 120.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:30:00 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_a_transient_error_with_its_pause(
    server: FileServer, tmp_path: Path, status: int, headers: dict[str, str | None], seconds: float | None
) -> None:
    server.script.append(answers(status, headers))
    with pytest.raises(TransientError, match=f"127.0.0.1.*model.safetensors: the server answers {status}") as caught:
        fetch(server.url, tmp_path / "model")
    assert caught.value.retry_after == seconds
    assert visible(tmp_path) == []


def test_a_busy_server_does_not_cost_the_part(server: FileServer, tmp_path: Path) -> None:
    have = break_off(server, tmp_path)
    server.script.append(answers(503))
    with pytest.raises(TransientError):
        fetch(server.url, tmp_path / "model")
    fetch(server.url, tmp_path / "model")
    assert server.seen[2].sent == len(server.content) - have


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_refusal_is_permanent(server: FileServer, tmp_path: Path, status: int) -> None:
    server.script.append(answers(status))
    with pytest.raises(InputError, match=f"the server answers {status}.*check the address, and the credentials"):
        fetch(server.url, tmp_path / "model")
    assert len(server.seen) == 1


def test_a_compressed_answer_is_refused(server: FileServer, tmp_path: Path) -> None:
    server.script.append(answers(200, {"Content-Encoding": "gzip"}, b"\x1f\x8b"))
    with pytest.raises(InputError, match="compressed"):
        fetch(server.url, tmp_path / "model")
    assert server.seen[0].headers["Accept-Encoding"] == "identity"


def test_nobody_listening_is_transient(nobody: str, tmp_path: Path) -> None:
    with pytest.raises(TransientError, match="Connection refused"):
        fetch(nobody, tmp_path / "model")


def test_a_silent_server_is_transient(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "TIMEOUT", (5.0, 0.05))
    over = threading.Event()

    def says_nothing(_: Exchange) -> None:
        over.wait(30)

    server.script.append(says_nothing)
    with pytest.raises(TransientError, match="timed out"):
        fetch(server.url, tmp_path / "model")
    over.set()


def test_a_connection_closed_without_an_answer_is_transient(server: FileServer, tmp_path: Path) -> None:
    server.script.append(lambda _: None)
    with pytest.raises(TransientError, match="without response"):
        fetch(server.url, tmp_path / "model")


@pytest.mark.parametrize("url", ["http://", "http://[::1/x", "https://exa mple/\x00"])
def test_an_impossible_address_is_permanent(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match="check it"):
        fetch(url, tmp_path / "model")


def test_endless_redirects_are_permanent(server: FileServer, tmp_path: Path) -> None:
    server.script.extend([answers(302, {"Location": "/again"})] * 40)
    with pytest.raises(InputError, match="leads nowhere"):
        fetch(server.url, tmp_path / "model")


def test_another_content_than_pinned_never_gets_the_name(server: FileServer, tmp_path: Path) -> None:
    pin = "0" * 64
    with pytest.raises(InputError) as caught:
        fetch(server.url, tmp_path / "model", sha256=pin)
    assert server.url in str(caught.value)
    assert pin in str(caught.value)
    assert sha256(server.content) in str(caught.value)
    assert visible(tmp_path) == []


def test_a_lie_about_the_length_is_caught_by_the_pin(server: FileServer, tmp_path: Path) -> None:
    server.script.append(answers(200, body=server.content[:1000]))
    with pytest.raises(InputError, match="not the file that was pinned"):
        fetch(server.url, tmp_path / "model", sha256=sha256(server.content))


def test_another_content_than_pinned_leaves_the_old_file(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"old")
    with pytest.raises(InputError):
        fetch(server.url, tmp_path / "model", sha256="0" * 64)
    assert (tmp_path / "model").read_bytes() == b"old"


def test_a_pinned_file_that_is_here_is_not_asked_for(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(server.content)
    fetch(server.url, tmp_path / "model", sha256=sha256(server.content))
    assert server.seen == []


@pytest.mark.parametrize("pin", ["", "abc", "z" * 64])
def test_a_pin_that_is_no_digest_is_refused(server: FileServer, tmp_path: Path, pin: str) -> None:
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        fetch(server.url, tmp_path / "model", sha256=pin)
    assert server.seen == []


@pytest.mark.parametrize("script", [[], [tells_no_length]], ids=["announced", "found while reading"])
def test_a_file_above_the_limit_is_refused(
    server: FileServer, tmp_path: Path, script: list[Callable[[Exchange], None]]
) -> None:
    server.script.extend(script)
    with pytest.raises(InputError, match="100000 are allowed"):
        fetch(server.url, tmp_path / "model", max_bytes=100_000)
    assert visible(tmp_path) == []


def test_a_file_of_just_the_limit_is_taken(server: FileServer, tmp_path: Path) -> None:
    assert fetch(server.url, tmp_path / "model", max_bytes=300_000).stat().st_size == 300_000


def test_an_announced_size_above_the_limit_is_not_read(server: FileServer, tmp_path: Path) -> None:
    calls: list[int] = []
    with pytest.raises(InputError):
        fetch(server.url, tmp_path / "model", max_bytes=299_999, progress=lambda done, _: calls.append(done))
    assert calls == []


@pytest.mark.parametrize(
    "answer", [answers(404), answers(503), breaks_off_at(1000), answers(302, {"Location": "ftp://x/"})]
)
def test_no_error_shows_credentials(server: FileServer, tmp_path: Path, answer: Callable[[Exchange], None]) -> None:
    secret = server.url.replace("http://", "http://user:pa55word@") + "?token=s3cret#s3cret"
    server.script.append(answer)
    with pytest.raises((InputError, TransientError)) as caught:
        fetch(secret, tmp_path / "model")
    told = "".join(traceback.format_exception(caught.value))
    assert server.url in told
    assert "pa55word" not in told
    assert "s3cret" not in told
    assert not any(b"s3cret" in path.read_bytes() for path in tmp_path.iterdir())


def test_a_refused_connection_shows_no_credentials(nobody: str, tmp_path: Path) -> None:
    secret = nobody + "?token=s3cret"
    with pytest.raises(TransientError) as caught:
        fetch(secret, tmp_path / "model")
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_a_transient_error_keeps_its_pause_between_processes() -> None:
    copy = pickle.loads(pickle.dumps(TransientError("busy", retry_after=7.0)))
    assert (str(copy), copy.retry_after) == ("busy", 7.0)


def test_a_destination_is_locked_while_it_grows(server: FileServer, tmp_path: Path) -> None:
    def try_lock(*_: object) -> None:
        with pytest.raises(Timeout):
            FileLock(tmp_path / ".model.lock").acquire(blocking=False)

    fetch(server.url, tmp_path / "model", progress=try_lock)
    with FileLock(tmp_path / ".model.lock").acquire(blocking=False):
        pass


def test_two_processes_share_one_download(server: FileServer, tmp_path: Path) -> None:
    both_are_running = threading.Event()

    def waits_midway(exchange: Exchange) -> None:
        exchange.head(200, {"ETag": '"one"', "Content-Length": "300000"})
        exchange.body(server.content[:150_000])
        both_are_running.wait(60)
        exchange.body(server.content[150_000:])

    server.script.append(waits_midway)
    program = (
        "import sys; from mergeline.checkpoints.sources import fetch; print('running', flush=True);"
        "fetch(sys.argv[1], sys.argv[2], sha256=sys.argv[3])"
    )
    command = [sys.executable, "-c", program, server.url, str(tmp_path / "model"), sha256(server.content)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    both_are_running.set()
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0]
    assert (tmp_path / "model").read_bytes() == server.content
    assert len(server.seen) == 1
