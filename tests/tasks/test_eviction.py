"""What is evicted from the cache, in which order, and what never is."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows import clean_cache
from tasks.eviction import DOWNLOADS, DRAFTS, RECORDS, age_text, byte_size, duration, entries, evict
from tasks.locks import exclusive
from tasks.policy import stage
from tasks.store import ArtifactRef, put_directory, put_json, store_directory
from tasks.usage import use_note

DAY = 24 * 3600
pytestmark = pytest.mark.usefixtures("state")


@stage("make-text")
def make_text(text: str) -> ArtifactRef:
    return put_json(text, "text")


def unused_for(days: float, ref: ArtifactRef) -> None:
    """As if no process had used it for that long."""
    then = time.time() - days * DAY
    os.utime(use_note(ref.identity), (then, then))


def put(text: str, days: float) -> ArtifactRef:
    ref = put_json(text, "text")
    unused_for(days, ref)
    return ref


def test_by_age() -> None:
    old, new = put("old", 40), put("new", 20)
    assert [entry.digest for entry in evict(older_than=30 * DAY)] == [old.sha256]
    assert (old.path.exists(), new.path.exists()) == (False, True)
    assert not use_note(old.identity).exists()
    assert evict(older_than=30 * DAY) == []


def test_by_size_the_least_recently_used_first() -> None:
    refs = [put("x" * 1000 + str(days), days) for days in (3, 1, 2, 4)]
    assert [entry.digest for entry in evict(keep=2500)] == [refs[3].sha256, refs[0].sha256]
    assert [ref.path.exists() for ref in refs] == [False, True, True, False]


def test_a_folder_goes_whole() -> None:
    ref = put_directory(lambda folder: (folder / "a").write_text("a"), "folder")
    unused_for(2, ref)
    assert [entry.kind for entry in evict(keep=0)] == ["folder"]
    assert not ref.path.exists()
    assert not list(store_directory().glob("tmp/*/"))


def test_what_this_process_uses_stays() -> None:
    ref = put_json("in use", "text")
    assert evict(older_than=0, keep=0) == []
    assert ref.path.exists()


def test_a_use_makes_an_artifact_young_again() -> None:
    ref, other = put("one", 40), put("two", 40)
    ref.verify()
    assert [entry.digest for entry in evict(older_than=30 * DAY)] == [other.sha256]


HOLDER = """
import sys
from tasks.store import put_json
ref = put_json(sys.argv[1], "text")
print(ref.sha256, flush=True)
sys.stdin.read()
"""


def test_what_another_process_uses_stays_until_it_ends(state: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, "theirs"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    sha256 = holder.stdout.readline().strip()
    [entry] = entries()
    assert entry.digest == sha256
    assert evict(keep=0) == []
    holder.kill()
    holder.wait()
    assert [gone.digest for gone in evict(keep=0)] == [sha256]
    assert not list((store_directory() / "users").iterdir())


@pytest.mark.usefixtures("prefect_server")
def test_the_record_of_an_artifact_goes_with_it_and_a_hit_is_a_use() -> None:
    ref = make_text("seven")
    [record] = [entry for entry in entries() if entry.kind == RECORDS]
    unused_for(40, ref)
    os.utime(record.path, (time.time() - 40 * DAY,) * 2)
    assert make_text("seven", return_state=True).name == "Cached"
    assert evict(older_than=30 * DAY) == []
    unused_for(40, ref)
    assert {entry.path for entry in evict(older_than=30 * DAY)} == {ref.path, record.path}
    assert make_text("seven", return_state=True).name == "Completed"


def test_drafts_stay_while_anybody_works_and_downloads_while_they_go_on(state: Path) -> None:
    for folder in ("incoming/.abc.part", "ranges/merge-1"):
        (store_directory() / folder).mkdir(parents=True)
        (store_directory() / folder / "file").write_text("half")
    assert {entry.kind for entry in entries()} == {DOWNLOADS, DRAFTS}
    assert (store_directory() / "eviction.lock").exists() is False, "nobody works"
    with exclusive(store_directory() / "incoming" / "abc.lock"):
        assert [entry.kind for entry in evict(keep=0)] == [DRAFTS]
    assert [entry.kind for entry in evict(keep=0)] == [DOWNLOADS]
    (store_directory() / "ranges" / "merge-2").mkdir()
    put_json("work", "text")
    assert evict(keep=0) == []


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["clean_cache", *arguments])
    return clean_cache.main()


def test_the_command_reports_and_removes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    put("x" * 5000, 40)
    put("y" * 3000, 2)
    assert run(monkeypatch) == 0
    said = capsys.readouterr().out
    assert "text" in said and "8.0KB" in said and "2 days ago" in said
    assert run(monkeypatch, "--older-than", "30d", "--keep", "1GB") == 0
    said = capsys.readouterr().out
    assert "removed 1 entry, 5.0KB" in said and "3.0KB" in said


@pytest.mark.parametrize(("option", "value"), [("--older-than", "30"), ("--older-than", "long"), ("--keep", "much")])
def test_options_that_say_nothing_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, option, value)
    assert f"'{value}' is no" in capsys.readouterr().err


def test_ages_and_sizes_are_read_and_written_as_people_do() -> None:
    assert [duration(text) for text in ("2m", "1.5h", "30d", "1w")] == [120, 5400, 30 * DAY, 7 * DAY]
    assert [byte_size(text) for text in ("10", "10kB", "1.5GiB")] == [10, 10_000, 3 << 29]
    assert [age_text(0, now) for now in (119, 120, 7200, 2 * DAY)] == [
        *("just now", "2 minutes ago", "2 hours ago", "2 days ago")
    ]
