"""What the writer refuses, and that nothing is left of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from written import files_in

from mergeline.checkpoints.writer import write_checkpoint
from mergeline.errors import InputError


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e5m2])
def test_a_value_that_is_not_finite_is_refused(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    bad = torch.tensor([1.0, value]).to(dtype)
    with pytest.raises(InputError, match=r"model\.safetensors: 1 of 2 values of tensor 'bad' are NaN or infinite"):
        write_checkpoint(tmp_path, {"a": torch.ones(2), "bad": bad})
    assert files_in(tmp_path) == []


def test_a_value_that_the_dtype_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 of 2 values of tensor 'w' do not fit into torch\.float16; write bfloat16"):
        write_checkpoint(tmp_path, {"w": torch.tensor([1.0, 1e6])}, dtype=torch.float16)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "no tensors were given"),
        ([("w", torch.ones(1)), ("w", torch.ones(1))], "tensor name 'w' is given twice"),
        ([("__metadata__", torch.ones(1))], "'__metadata__' is not usable"),
        ([(3, torch.ones(1))], "tensor name 3 is not usable"),
        (["w"], "a str is no pair"),
        ([("w", 1.0)], "'w' is not a dense tensor"),
        ([("w", torch.ones(2).to_sparse())], "'w' is not a dense tensor"),
        ([("w", torch.ones(2, dtype=torch.complex128))], "'w' is not a dense tensor of a dtype that safetensors knows"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, pairs: list[tuple[str, Tensor]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_checkpoint(tmp_path, iter(pairs))
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("m.pt", {}, "let the name end in .safetensors"),
        ("m.safetensors", {"dtype": torch.int8}, "is not a floating dtype"),
        ("m.safetensors", {"dtype": "bfloat16"}, "is not a floating dtype; use"),
        ("m.safetensor", {}, "would be a folder; let a file end in .safetensors"),
        ("model.safetensors.index.json", {}, "would be a folder; let a file end in .safetensors"),
        ("m.safetensors", {"max_shard_size": 0}, "give a number of bytes above 0"),
        ("m.safetensors", {"max_shard_size": True}, "give a number of bytes above 0"),
        (
            "m.safetensors",
            {"max_shard_size": "5 apples"},
            "max_shard_size is '5 apples'; give a number",
        ),
        ("m.safetensors", {"max_shard_size": "0GB"}, "give a number of bytes above 0, a size like 5GB"),
        ("m.safetensors", {"metadata": {"steps": 3}}, "metadata 'steps' is not a string"),
    ],
)
def test_an_impossible_option_is_refused_before_anything_is_read(
    tmp_path: Path, name: str, options: dict[str, object], message: str
) -> None:
    def never() -> Iterator[tuple[str, Tensor]]:
        pytest.fail("a tensor was asked for")
        yield

    with pytest.raises(InputError, match=message):
        write_checkpoint(tmp_path / name, never(), **options)  # type: ignore[arg-type]
    assert files_in(tmp_path) == []


def test_a_file_of_another_kind_is_not_taken_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(InputError, match=r"model\.ckpt: checkpoints are written as safetensors"):
        write_checkpoint(tmp_path / "model.ckpt", {"w": torch.ones(2)})


@pytest.mark.parametrize("name", ["file/m.safetensors", "file/model", "file/deep/er/m.safetensors"])
def test_a_place_below_a_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match=r"cannot be written into .*; choose another place"):
        write_checkpoint(tmp_path / name, {"w": torch.ones(1)})
    assert (tmp_path / "file").read_text() == "kept"
