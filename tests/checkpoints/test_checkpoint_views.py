"""Readers over readers: means of checkpoints."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mergeline.checkpoints.readers import MeanReader, SafetensorsReader, TensorReader
from mergeline.errors import InputError

STATE = {
    "layer.weight": torch.arange(12.0).reshape(4, 3),
    "layer.bias": torch.tensor([1.0, -2.0, 0.5, 8.0], dtype=torch.bfloat16),
    "layer.steps": torch.tensor(7),
    "layer.mask": torch.tensor([True, False]),
}


class CountingReader(TensorReader):
    """Counts the rows that are read."""

    rows = 0

    def read(self, name: str) -> Tensor:
        tensor = super().read(name)
        self.rows += len(tensor)
        return tensor

    def read_slice(self, name: str, start: int, stop: int) -> Tensor:
        self.rows += stop - start
        return self._tensors[name][start:stop]


def test_a_slice_of_a_view_reads_only_these_rows() -> None:
    sources = [CountingReader({"w": torch.randn(100, 3)}) for _ in range(2)]
    reader = MeanReader(sources)
    whole = reader.read("w")
    assert [source.rows for source in sources] == [100, 100]
    assert torch.equal(reader.read_slice("w", 10, 20), whole[10:20])
    assert [source.rows for source in sources] == [110, 110]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"w": torch.zeros(2, 3)}, r"tensor 'w' has shape \[2, 3\], but \[3, 2\]"),
        ({"v": torch.zeros(3, 2)}, "has no tensor 'w'"),
    ],
)
def test_models_of_different_architectures_are_refused(other: dict[str, Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MeanReader([TensorReader({"w": torch.zeros(3, 2)}), TensorReader(other)])


def test_a_mean_refuses_a_tensor_that_only_the_other_has() -> None:
    with pytest.raises(InputError, match="first: has no tensor 'head'"):
        MeanReader([TensorReader({}, "first"), TensorReader({"head": torch.zeros(1)}, "second")])


def test_a_mean_is_float32_and_takes_integers_from_the_first() -> None:
    other = {name: tensor * 3 if tensor.is_floating_point() else ~tensor for name, tensor in STATE.items()}
    mean = MeanReader([TensorReader(STATE), TensorReader(other)])
    assert mean.names() == sorted(STATE)
    for name in ("layer.weight", "layer.bias"):
        assert torch.equal(mean.read(name), STATE[name].float() * 2), name
        assert mean.dtype(name) == mean.read(name).dtype == torch.float32, name
    for name in ("layer.steps", "layer.mask"):
        assert torch.equal(mean.read(name), STATE[name]), name
        assert mean.dtype(name) == STATE[name].dtype, name
    assert torch.equal(mean.read_slice("layer.bias", 1, 3), STATE["layer.bias"][1:3].float() * 2)


@pytest.mark.parametrize("count", range(1, 12))
def test_the_mean_of_equal_models_is_that_model_bit_for_bit(count: int) -> None:
    model = {"w": torch.randn(1000, generator=torch.Generator().manual_seed(0))}
    assert torch.equal(MeanReader([TensorReader(model)] * count).read("w"), model["w"])


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="at least one"):
        MeanReader([])


def test_a_view_of_files_names_them(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    model = SafetensorsReader(tmp_path / "model.safetensors")
    assert MeanReader([model, TensorReader(STATE)]).source == f"mean of {tmp_path}/model.safetensors, state dict"
    assert repr(model) == f"<SafetensorsReader {tmp_path}/model.safetensors: 4 tensors>"
