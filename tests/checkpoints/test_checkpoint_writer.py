"""Written checkpoints: what comes back, and which bytes lie there."""

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from written import TENSORS, files_in, model, same

from mergeline.checkpoints.encoding import DTYPES
from mergeline.checkpoints.readers import open_checkpoint
from mergeline.checkpoints.writer import Manifest, write_checkpoint


@given(tensors=TENSORS, max_shard_size=st.none() | st.integers(1, 400), as_pairs=st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_is_written_comes_back(tensors: dict[str, Tensor], max_shard_size: int | None, as_pairs: bool) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        given = iter(tensors.items()) if as_pairs else tensors
        manifest = write_checkpoint(path, given, max_shard_size=max_shard_size)
        assert same(open_checkpoint(path), tensors)
        assert same(open_checkpoint(folder), tensors)
        assert sorted(manifest.files) == files_in(Path(folder))
        for name in manifest.files:  # the library reads our bytes as its own
            if name.endswith(".safetensors"):
                for key, tensor in load_file(Path(folder) / name).items():
                    assert torch.equal(tensor, tensors[key]), key


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.tensor([[0, 1, 2], [3, 4, 5]]).to(dtype)
    write_checkpoint(tmp_path, {"w": values})
    back = load_file(tmp_path / "model.safetensors")["w"]
    assert back.dtype == dtype
    assert torch.equal(back.view(torch.uint8), values.view(torch.uint8))
    assert open_checkpoint(tmp_path).dtype("w") == dtype


def test_the_bytes_are_these(tmp_path: Path) -> None:
    tensors = {"b": torch.tensor([True]), "w": torch.tensor([1.0, -2.0]), "a": torch.tensor([1, 2], dtype=torch.int16)}
    write_checkpoint(tmp_path / "m.safetensors", tensors, metadata={"z": "1", "é": "2"})
    header = (
        '{"__metadata__":{"format":"pt","z":"1","é":"2"},'
        '"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        '"a":{"dtype":"I16","shape":[2],"data_offsets":[8,12]},'
        '"b":{"dtype":"BOOL","shape":[1],"data_offsets":[12,13]}}'
    ).encode()
    header += b" " * (-len(header) % 8)
    data = bytes.fromhex("0000803f 000000c0 0100 0200 01")
    assert (tmp_path / "m.safetensors").read_bytes() == len(header).to_bytes(8, "little") + header + data
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "z": "1", "é": "2"}


@pytest.mark.parametrize("max_shard_size", [None, 900])
def test_equal_tensors_give_equal_bytes_in_any_order(tmp_path: Path, max_shard_size: int | None) -> None:
    metadata = {str(i): "x" for i in range(9)}
    first = write_checkpoint(tmp_path / "a", model(), max_shard_size=max_shard_size, metadata=metadata)
    turned = dict(reversed(model().items()))
    backwards = dict(reversed(metadata.items()))
    assert write_checkpoint(tmp_path / "b", turned, max_shard_size=max_shard_size, metadata=backwards) == first


def test_a_manifest_counts_and_hashes(tmp_path: Path) -> None:
    manifest = write_checkpoint(tmp_path / "m.safetensors", {"w": torch.ones(3, 4), "steps": torch.tensor(1)})
    data = (tmp_path / "m.safetensors").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert manifest == Manifest({"m.safetensors": digest}, digest, tensors=2, parameters=13, bytes=len(data))


@pytest.mark.parametrize(("before", "after"), [(None, 800), (800, None), (800, 1600), (1600, 1601)])
def test_a_new_checkpoint_replaces_the_old_one_whole(tmp_path: Path, before: int | None, after: int | None) -> None:
    (tmp_path / "model-of-mine.safetensors").touch()
    write_checkpoint(tmp_path, model(), max_shard_size=before)
    new = {name: tensor + 1 for name, tensor in model().items()}
    manifest = write_checkpoint(tmp_path, new, max_shard_size=after)
    assert files_in(tmp_path) == sorted([*manifest.files, "model-of-mine.safetensors"])
    assert same(open_checkpoint(tmp_path / "model.safetensors"), new)


def test_a_checkpoint_can_be_rewritten_from_its_own_reader(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, model(), max_shard_size=800)
    write_checkpoint(tmp_path, open_checkpoint(tmp_path), dtype=torch.bfloat16, max_shard_size=800)
    assert same(open_checkpoint(tmp_path), {name: tensor.bfloat16() for name, tensor in model().items()})


def test_only_floating_tensors_change_their_dtype(tmp_path: Path) -> None:
    tensors = {"w": torch.ones(2), "h": torch.ones(2).half(), "steps": torch.tensor(70_000), "mask": torch.tensor(True)}
    write_checkpoint(tmp_path, tensors, dtype=torch.bfloat16)
    expected = tensors | {"w": tensors["w"].bfloat16(), "h": tensors["h"].bfloat16()}
    assert same(open_checkpoint(tmp_path), expected)


def test_tensors_that_share_memory_are_written_in_full(tmp_path: Path) -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": weight, "tied": weight, "row": weight[1], "turned": weight.T, "wide": torch.ones(1).expand(5)}
    write_checkpoint(tmp_path, tensors)
    assert same(open_checkpoint(tmp_path), tensors)


def test_parameters_are_written(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, dict(torch.nn.Linear(2, 3).named_parameters()))
    assert open_checkpoint(tmp_path).shape("weight") == (3, 2)


def test_a_dot_in_the_name_of_a_folder_makes_no_file_of_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "Llama-3.2-1B", {"w": torch.ones(2)})
    assert files_in(tmp_path) == ["Llama-3.2-1B", "Llama-3.2-1B/model.safetensors"]
