"""Open a checkpoint of any kind, and look at several as one: their mean."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from mergeline.checkpoints.adapters import open_adapter
from mergeline.checkpoints.files import INDEXES, SUFFIXES, choose_weights, is_index
from mergeline.checkpoints.formats import SafetensorsReader, ShardedReader, open_torch
from mergeline.checkpoints.huggingface import open_huggingface
from mergeline.checkpoints.tensors import Reader, TensorReader, UnknownTensorError
from mergeline.checkpoints.ties import common_ties
from mergeline.errors import InputError, nearest

__all__ = [
    "MeanReader",
    "Reader",
    "SafetensorsReader",
    "ShardedReader",
    "TensorReader",
    "UnknownTensorError",
    "open_checkpoint",
]


def open_checkpoint(checkpoint: str | Path | Mapping[str, Tensor]) -> Reader:
    """Open a checkpoint; nothing but headers is read before a tensor is asked for.

    checkpoint: a .safetensors file; a .pt, .pth or .bin file with tensors only; the index.json of shards of either; a
    folder with one of them, such as a Hugging Face directory or an adapter directory of PEFT; a state dict; or a Reader
    (returned as it is). Raises InputError for anything else.
    """
    if isinstance(checkpoint, Reader):
        return checkpoint
    if isinstance(checkpoint, Mapping):
        return TensorReader(checkpoint)
    if not isinstance(checkpoint, str | Path):
        kind = type(checkpoint).__name__
        raise InputError(f"a {kind} is not a checkpoint; pass a path or a state dict, as module.state_dict() gives it")
    path = _find(Path(checkpoint))
    return open_huggingface(path, open_adapter(path, _open(path)))


def _open(path: Path) -> Reader:
    if is_index(path.name):
        return ShardedReader(path)
    if path.suffix == ".safetensors":
        return SafetensorsReader(path)
    if path.suffix in SUFFIXES:
        return open_torch(path)
    raise InputError(f"{path}: unknown kind of checkpoint '{path.suffix}'; known are .safetensors, .pt, .pth and .bin")


def _find(path: Path) -> Path:
    """The file to open for a path: in a folder the model, for a model that was written in shards its index."""
    if path.is_dir():
        return path / choose_weights([file.name for file in path.iterdir() if file.is_file()], str(path))
    if path.exists():
        return path
    for ending in INDEXES:
        index = path.with_name(path.stem + ending)
        if ending.startswith(path.suffix + ".") and index.exists():
            return index
    beside = [other.name for other in path.parent.glob("*")]
    raise InputError(f"{path}: there is no such file{nearest(path.name, beside)}")


class MeanReader(Reader):
    """The mean of several checkpoints: floating tensors as float32, all others from the first.

    Raises InputError where names or shapes differ.
    """

    def __init__(self, readers: Sequence[Reader]) -> None:
        if not readers:
            raise InputError("a mean of no checkpoints was asked for; pass at least one")
        self._readers = list(readers)
        self._first = readers[0]
        self.source = f"mean of {', '.join(reader.source for reader in readers)}"
        for other in self._readers[1:]:
            for name in self._first.names():
                _refuse_other_shape(name, self._first, other)
            for name in other.names():
                _refuse_other_shape(name, other, self._first)

    def names(self) -> list[str]:
        """Names that all checkpoints share, sorted."""
        return self._first.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a mean."""
        return self._first.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Float32 for floating tensors, else that of the first checkpoint."""
        dtype = self._first.dtype(name)
        return torch.float32 if dtype.is_floating_point else dtype

    def read(self, name: str) -> Tensor:
        """The mean of one tensor."""
        return self._mean(name, lambda reader: reader.read(name))

    def read_slice(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the mean; only these rows are read."""
        return self._mean(name, lambda reader: reader.read_slice(name, start, stop))

    def tied(self) -> dict[str, str]:
        """Ties that all checkpoints share."""
        return common_ties([reader.tied() for reader in self._readers])

    def aliases(self) -> dict[str, str]:
        """Aliases of the first checkpoint."""
        return self._first.aliases()

    def _mean(self, name: str, read: Callable[[Reader], Tensor]) -> Tensor:
        if not self._first.dtype(name).is_floating_point:
            return read(self._first)
        # Summed in float64: the mean of equal float32 models is then that model bit for bit, however many they are.
        total = reduce(torch.add, (read(reader).double() for reader in self._readers))
        return (total / len(self._readers)).float()


def _refuse_other_shape(name: str, reader: Reader, other: Reader) -> None:
    """Raise InputError unless `other` has the tensor in the shape that it has in `reader`."""
    if reader.shape(name) != other.shape(name):
        raise InputError(
            f"{other.source}: tensor '{name}' has shape {list(other.shape(name))}, but {list(reader.shape(name))} in "
            f"{reader.source}; only checkpoints of one architecture can be combined"
        )
