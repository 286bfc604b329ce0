"""Large checkpoints: which tensors lie in which file, and the index of them."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from written import Stream, files_in, model, same

from mergeline.checkpoints import output
from mergeline.checkpoints.readers import open_checkpoint
from mergeline.checkpoints.writer import write_checkpoint


def test_a_large_model_becomes_shards_with_an_index(tmp_path: Path) -> None:
    tensors = model(5)
    manifest = write_checkpoint(tmp_path, tensors, max_shard_size=800, metadata={"from": "test"})
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert files_in(tmp_path) == [*shards, "model.safetensors.index.json"] == sorted(manifest.files)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    places = [shards[i // 2] for i in range(5)]
    assert index == {"metadata": {"total_size": 2000}, "weight_map": dict(zip(tensors, places, strict=True))}
    for name, digest in manifest.files.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    assert (manifest.tensors, manifest.parameters) == (5, 500)
    assert manifest.bytes == sum((tmp_path / name).stat().st_size for name in manifest.files)
    with safe_open(tmp_path / shards[1], "pt") as file:
        assert file.metadata() == {"format": "pt", "from": "test"}


def test_an_index_lists_names_in_order_however_they_come(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, reversed(model(5).items()), max_shard_size=800)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert list(index["weight_map"]) == sorted(model(5))
    assert same(open_checkpoint(tmp_path), model(5))


def test_the_digest_of_shards_differs_when_one_value_differs(tmp_path: Path) -> None:
    tensors = model()
    first = write_checkpoint(tmp_path, tensors, max_shard_size=800)
    tensors["layer3.weight"][0, 0] += 1
    assert write_checkpoint(tmp_path, tensors, max_shard_size=800).sha256 != first.sha256


def test_a_model_that_fits_becomes_one_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, model(), max_shard_size=2400)
    assert files_in(tmp_path) == ["model.safetensors"]


def test_a_tensor_larger_than_a_shard_gets_its_own(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(1), "b": torch.ones(100), "c": torch.ones(1)}
    assert len(write_checkpoint(tmp_path, tensors, max_shard_size=8).files) == 4
    assert same(open_checkpoint(tmp_path), tensors)


@pytest.mark.parametrize(("size", "count"), [("800", 3), ("0.8KB", 3), ("1KiB", 3), ("2kB", 1)])
def test_a_shard_size_may_be_written_as_in_a_plan(tmp_path: Path, size: str, count: int) -> None:
    manifest = write_checkpoint(tmp_path / "whole", model(5), max_shard_size=size)
    assert sum(name.endswith(".safetensors") for name in manifest.files) == count
    assert len(output.prepare(tmp_path / "parts", Stream(model(5)).specs, max_shard_size=size).shards) == count
