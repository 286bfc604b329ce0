"""Tensors on their way into a file: what they will be is known beforehand, what they hold comes piece by piece."""

import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mergeline.checkpoints.encoding import NAMES, Spec, data_of, nbytes
from mergeline.checkpoints.finite import count_not_finite, is_finite
from mergeline.errors import InputError

PIECE = 1 << 20  # entries of a tensor in memory that are converted and checked at a time
ALIGNED = 16  # in the spool every tensor begins at a multiple of its element size

FlatPiece = tuple[str, int, Tensor]  # name, index of the first entry, entries; valid until the next is taken


@runtime_checkable
class TensorStream(Protocol):
    """Tensors that are computed as they are written, as `mergeline.merge` gives them."""

    @property
    def specs(self) -> Mapping[str, Spec]:
        """Name -> shape and dtype of every tensor."""

    def pieces(self, names: Sequence[str]) -> Iterator[FlatPiece]:
        """The named tensors in this order, each from its first entry to its last."""


class HeldTensors:
    """Tensors that are in memory already."""

    def __init__(self, tensors: Mapping[str, Tensor], target: Path) -> None:
        self._tensors = {name: _dense(name, tensors[name], target) for name in sorted(tensors, key=str)}
        self.specs = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in self._tensors.items()}

    def pieces(self, names: Sequence[str]) -> Iterator[FlatPiece]:
        """Views where a tensor's entries lie one after the other; otherwise one tensor is copied at a time."""
        for name in names:
            yield from _cut(name, self._tensors[name])


class SpooledTensors:
    """Pairs taken as they come and kept in a file until the last is known: no more than one is held in memory."""

    def __init__(
        self, pairs: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None, target: Path, spool: Path
    ) -> None:
        self.specs: dict[str, Spec] = {}
        self._places: dict[str, int] = {}
        with spool.open("w+b") as file:
            for pair in pairs:
                if not isinstance(pair, tuple) or len(pair) != 2:
                    raise InputError(f"{target}: a {type(pair).__name__} is no pair (name, tensor)")
                name, tensor = pair
                if name in self.specs:
                    raise InputError(f"{target}: tensor name {name!r} is given twice")
                dense = _dense(name, tensor, target)
                self.specs[name] = written_as((tuple(dense.shape), dense.dtype), dtype)
                self._places[name] = file.seek(-(-file.tell() // ALIGNED) * ALIGNED)
                for _, _, piece in checked(_cut(name, dense), dtype, target):
                    file.write(data_of(piece))
                del pair, tensor, dense  # before the next one is made
            file.flush()
            size = file.seek(0, 2)
            self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) if size else None

    def pieces(self, names: Sequence[str]) -> Iterator[FlatPiece]:
        """Views of the file, mapped into memory."""
        for name in names:
            (shape, dtype), size = self.specs[name], nbytes(self.specs[name])
            if size and self._map:
                flat = torch.frombuffer(self._map, dtype=dtype, count=prod(shape), offset=self._places[name])
                yield from _cut(name, flat)


def written_as(spec: Spec, dtype: torch.dtype | None) -> Spec:
    """What a tensor becomes: floating ones take the dtype."""
    return (spec[0], dtype) if dtype and spec[1].is_floating_point else spec


def checked(pieces: Iterable[FlatPiece], dtype: torch.dtype | None, target: Path) -> Iterator[FlatPiece]:
    """The pieces as they will be written; InputError for NaN and infinity, also for those that `dtype` brings about."""
    faulty, values, broken, broken_before = None, 0, 0, 0
    for name, start, piece in pieces:
        if faulty not in (None, name):
            break
        kept = not (piece.is_floating_point() or piece.is_complex())
        written = piece.to(dtype) if dtype and piece.is_floating_point() else piece
        if faulty is None and (kept or is_finite(written)):
            yield name, start, written
        else:  # the rest of the tensor is only counted
            faulty, values = name, start + piece.numel()
            broken, broken_before = broken + count_not_finite(written), broken_before + count_not_finite(piece)
    if faulty is None:
        return
    count = f"{target}: {broken} of {values} values of tensor '{faulty}'"
    if broken_before:
        raise InputError(f"{count} are NaN or infinite; nothing was written")
    raise InputError(f"{count} do not fit into {dtype}; write bfloat16 or float32")


def check_specs(specs: Mapping[str, Spec], target: Path) -> None:
    """InputError for names and dtypes that safetensors does not know, and for no tensors at all."""
    for name, (_, dtype) in specs.items():
        _check_name(name, target)
        if dtype not in NAMES:
            raise InputError(f"{target}: '{name}' is not a dense tensor of a dtype that safetensors knows; convert it")
    if not specs:
        raise InputError(f"{target}: no tensors were given; there is nothing to write (is an iterator used up?)")


def _check_name(name: object, target: Path) -> None:
    if not isinstance(name, str) or name == "__metadata__":
        raise InputError(f"{target}: tensor name {name!r} is not usable")


def _dense(name: str, tensor: Tensor, target: Path) -> Tensor:
    _check_name(name, target)
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.dtype not in NAMES:
        raise InputError(f"{target}: '{name}' is not a dense tensor of a dtype that safetensors knows; convert it")
    return tensor.detach()


def _cut(name: str, tensor: Tensor) -> Iterator[FlatPiece]:
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), PIECE):
        yield name, start, flat[start : start + PIECE]
