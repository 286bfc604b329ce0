"""A write that is broken off leaves what was there before, and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from written import files_in, model, same

from mergeline.checkpoints import atomic, output
from mergeline.checkpoints.readers import open_checkpoint
from mergeline.checkpoints.writer import write_checkpoint


def breaks_after(count: int) -> Iterator[tuple[str, Tensor]]:
    yield from list(model().items())[:count]
    raise KeyboardInterrupt


@pytest.mark.parametrize("max_shard_size", [None, 800])
@pytest.mark.parametrize("before", [None, 900, 1600], ids=["over one file", "over shards", "over larger shards"])
def test_a_crash_midway_leaves_the_old_checkpoint_and_nothing_else(
    tmp_path: Path, max_shard_size: int | None, before: int | None
) -> None:
    write_checkpoint(tmp_path, model(), max_shard_size=before)
    there = files_in(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, breaks_after(5), max_shard_size=max_shard_size)
    assert files_in(tmp_path) == there
    assert same(open_checkpoint(tmp_path), model())


def test_a_crash_midway_leaves_an_empty_folder_empty(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, breaks_after(5), max_shard_size=400)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
@pytest.mark.parametrize("before", [None, 800], ids=["over one file", "over shards"])
def test_a_crash_while_naming_shards_leaves_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int | None, fails_at: int
) -> None:
    write_checkpoint(tmp_path, model(), max_shard_size=before)
    old = files_in(tmp_path)
    published: list[Path] = []

    def fails(temporary: Path, final: Path) -> None:
        published.append(final)
        if len(published) == fails_at:
            raise OSError(5, "Input/output error")
        temporary.replace(final)

    monkeypatch.setattr(atomic, "publish", fails)
    with pytest.raises(OSError, match="Input/output error"):
        write_checkpoint(tmp_path, {name: tensor + 1 for name, tensor in model().items()}, max_shard_size=800)
    if before is None:
        assert files_in(tmp_path) == old
        assert same(open_checkpoint(tmp_path), model())
    else:
        assert files_in(tmp_path) == []


def test_folders_that_were_made_for_a_checkpoint_go_with_it(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "new" / "folder", tmp_path / "mine"):
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(folder, breaks_after(5))
    assert files_in(tmp_path) == ["mine"]


def test_folders_that_were_made_for_parts_go_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, specs = tmp_path / "new" / "folder", {"w": ((2,), torch.float32)}
    output.abandon(output.prepare(target, specs))
    assert files_in(tmp_path) == []
    monkeypatch.setattr(output, "encode_header", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        output.prepare(target, specs)
    assert files_in(tmp_path) == []
