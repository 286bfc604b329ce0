"""The content store: whole or not at all, read-only, never trusted blindly."""

import hashlib
import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.store import ArtifactRef, digest, publish, put_directory, put_file, put_json, read_json, take_file


def put_text(text: str, suffix: str = ".txt") -> ArtifactRef:
    return put_file(lambda path: path.write_text(text), suffix, "text")


def put_folder(**files: str) -> ArtifactRef:
    def write(folder: Path) -> None:
        for name, text in files.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    return put_directory(write, "folder")


def artifacts(state: Path) -> list[str]:
    """Everything that can be seen in the store under a name that counts."""
    return sorted(path.name for path in (state / ".store").glob("??/*"))


def drafts(state: Path) -> list[Path]:
    return [path for path in (state / ".store" / "tmp").iterdir() if path.is_dir()]


def test_a_file_is_named_by_its_content(state: Path) -> None:
    ref = put_file(lambda path: path.write_text("seven"), ".txt", "text", lines=1, of="days")
    assert ref.sha256 == hashlib.sha256(b"seven").hexdigest()
    assert ref.path == state / ".store" / ref.sha256[:2] / f"{ref.sha256}.txt"
    assert ref.path.read_text() == "seven"
    assert (ref.kind, ref.metadata) == ("text", {"lines": 1, "of": "days"})
    assert put_text("seven").path == ref.path
    assert artifacts(state) == [ref.path.name]


def test_a_reference_survives_json_unchanged(state: Path) -> None:
    ref = put_file(lambda path: path.write_text("x"), ".txt", "text", shape=[1, 2], share=0.5, note=None)
    assert ArtifactRef.model_validate_json(ref.model_dump_json()) == ref


def test_a_folder_is_named_by_the_paths_and_contents_of_its_files(state: Path) -> None:
    ref = put_folder(a="1", sub__b="2")
    assert sorted(path.relative_to(ref.path).as_posix() for path in ref.path.rglob("*")) == ["a", "sub", "sub/b"]
    assert put_folder(sub__b="2", a="1") == ref
    others = [put_folder(a="1", sub__b="3"), put_folder(a="1", sub__c="2"), put_folder(a="1")]
    assert len({ref.sha256, *(other.sha256 for other in others)}) == 4


def test_artifacts_are_read_only(state: Path) -> None:
    for path in (put_text("x").path, put_folder(a="1").path / "a"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o444


@pytest.mark.parametrize("change", ["removed", "altered", "altered to the same size and time"])
def test_no_reference_to_an_artifact_that_is_gone_or_altered(state: Path, change: str) -> None:
    text, folder = put_text("seven"), put_folder(a="1", b="2")
    for ref, file in [(text, text.path), (folder, folder.path / "a")]:
        before = file.stat()
        file.unlink()
        if change != "removed":
            file.write_text("x" * before.st_size if "same" in change else "another text")
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(ValidationError, match=r"missing|altered"):
            ArtifactRef(**ref.model_dump())
        with pytest.raises(ValueError, match=r"missing|altered"):
            publish(ref, state / "out")
        assert not (state / "out").exists()


def test_a_file_that_joins_a_stored_folder_is_noticed(state: Path) -> None:
    ref = put_folder(a="1")
    (ref.path / "b").write_text("2")
    with pytest.raises(ValueError, match="altered"):
        ref.verify()


def test_writing_again_mends_a_damaged_artifact(state: Path) -> None:
    file, folder = put_text("seven"), put_folder(a="1", b="2")
    file.path.unlink()
    file.path.write_text("damaged")
    (folder.path / "a").unlink()
    assert put_text("seven") == file
    assert put_folder(a="1", b="2") == folder
    assert (folder.path / "a").read_text() == "1"
    assert drafts(state) == []


@pytest.mark.parametrize(
    "put", [lambda write: put_file(write, ".txt", "text"), lambda write: put_directory(write, "x")]
)
def test_an_exception_while_writing_leaves_nothing(state: Path, put: object) -> None:
    def write(path: Path) -> None:
        (path / "a" if path.is_dir() else path).write_text("half")
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        put(write)  # type: ignore[operator]
    assert artifacts(state) == []
    assert drafts(state) == []


def test_a_writer_that_writes_nothing_is_an_error(state: Path) -> None:
    with pytest.raises(ValueError, match="no file was written"):
        put_file(lambda path: None, ".txt", "text")
    with pytest.raises(ValueError, match="no file was written"):
        put_directory(lambda folder: None, "folder")
    with pytest.raises(ValueError, match="not links"):
        put_directory(lambda folder: (folder / "link").symlink_to("/etc/hostname"), "folder")
    assert artifacts(state) == []


def test_a_writer_that_is_killed_leaves_nothing_that_can_be_seen_and_is_cleared_away(state: Path) -> None:
    script = """
import sys
from tasks.store import put_directory
def write(folder):
    (folder / "half").write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
put_directory(write, "folder")
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ)
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"writing\n"
    put_text("a draft of the living is left alone")
    assert len(drafts(state)) == 1
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    ref = put_text("a draft of the dead is not")
    assert drafts(state) == []
    assert len(artifacts(state)) == 2
    assert ref.path.name in artifacts(state)


def test_many_writers_of_the_same_folder_agree(state: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        refs = list(pool.map(lambda _: put_folder(a="1", sub__b="2"), range(32)))
    assert len({ref.sha256 for ref in refs}) == 1
    assert len(artifacts(state)) == 1
    assert drafts(state) == []


def test_taking_a_file_copies_it_once(state: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    ref = take_file(file, "checkpoint", name="a")
    stored = ref.path.stat()
    assert take_file(file, "checkpoint", name="b").path.stat().st_ino == stored.st_ino
    assert ref.path.name == f"{digest(file)}.safetensors"
    file.write_bytes(b"new")
    assert ref.path.read_bytes() == b"weights"


def test_json_is_stored_in_one_form(state: Path) -> None:
    ref = put_json({"b": [1, 2.5], "a": None}, "metrics")
    assert put_json({"a": None, "b": [1, 2.5]}, "metrics") == ref
    assert read_json(ref) == {"a": None, "b": [1, 2.5]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        put_json(float("nan"), "metrics")


def test_publishing_a_file_replaces_it_by_a_copy_that_one_may_edit(state: Path, tmp_path: Path) -> None:
    destination = tmp_path / "data" / "merged.txt"
    assert publish(put_text("one"), destination) == destination
    ref = put_text("two")
    publish(ref, destination)
    assert destination.stat().st_ino != ref.path.stat().st_ino
    assert stat.S_IMODE(destination.stat().st_mode) & stat.S_IWUSR
    destination.write_text("edited")
    ref.verify()
    assert [path.name for path in destination.parent.iterdir()] == ["merged.txt"]


def test_publishing_a_folder_replaces_all_of_it(state: Path, tmp_path: Path) -> None:
    destination = tmp_path / "data" / "alignment"
    publish(put_folder(a="1", old="0"), destination)
    publish(put_folder(a="2", sub__b="3"), destination)
    files = {path.relative_to(destination).as_posix(): path.read_text() for path in destination.rglob("?")}
    assert files == {"a": "2", "sub/b": "3"}
    assert not (destination / "old").exists()
    assert stat.S_IMODE((destination / "a").stat().st_mode) & stat.S_IWUSR
    assert [path.name for path in destination.parent.iterdir()] == ["alignment"]


@pytest.mark.parametrize("field", [{"suffix": "/../../x"}, {"sha256": "../x"}, {"suffix": ".a/b"}])
def test_a_reference_cannot_point_out_of_the_store(state: Path, field: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="pattern"):
        ArtifactRef(**{**put_text("x").model_dump(), **field})
