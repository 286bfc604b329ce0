"""Task models and their bases as flat float32 rows, a bounded piece at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from mergeline.checkpoints.readers import Reader
from mergeline.errors import InputError


@dataclass(frozen=True)
class Chunk:
    """Flat entries [start, start + c) of one tensor. rows: [n, c] float32. bases: one per family [k, c], or None."""

    start: int
    rows: Tensor
    bases: Tensor | None


@dataclass(frozen=True, eq=False)
class TaskModels:
    """n task models of one architecture. families: the k distinct bases, none for methods that work without one.

    family_of: the index of each model's base among them. Then row i of a chunk is model i - its base (a task vector),
    otherwise model i itself. A base is read once, however many models started from it.
    """

    models: Sequence[Reader]
    families: Sequence[Reader] = ()
    family_of: Sequence[int] = ()

    def chunks(self, name: str, size: int) -> Iterator[Chunk]:
        """One tensor in pieces of at most `size` entries per model; a row of the tensor is the least that is read."""
        shape = self.models[0].shape(name)
        width = prod(shape[1:])
        step = max(1, size // max(1, width))
        for first in range(0, shape[0] if shape else 1, step) if prod(shape) else ():
            rows = _read(self.models, name, first, first + step)
            bases = _read(self.families, name, first, first + step) if self.families else None
            if bases is not None:
                rows -= bases[list(self.family_of)]
            for start in range(0, rows.shape[1], size):
                part = slice(start, start + size)
                yield Chunk(first * width + start, rows[:, part], None if bases is None else bases[:, part])

    def rows(self, names: Sequence[str], size: int) -> Iterator[Tensor]:
        """The named tensors one after the other as [n, c] float32 pieces: together the flat (task) vectors."""
        for name in names:
            for chunk in self.chunks(name, size):
                yield chunk.rows

    def without_bases(self) -> "TaskModels":
        """The same models for a method that works on the models themselves."""
        return TaskModels(self.models)


def is_finite(tensor: Tensor) -> bool:
    """Whether a floating tensor holds neither NaN nor infinity (the extremes tell, and need no mask)."""
    return not tensor.numel() or bool(torch.isfinite(torch.stack(tensor.float().aminmax())).all())


def _read(readers: Sequence[Reader], name: str, first: int, last: int) -> Tensor:
    """Rows [first, last) of one tensor of every reader, flat: [n, c] float32. InputError where one is not finite."""
    rows = []
    for reader in readers:
        tensor = reader.read_slice(name, first, last) if reader.shape(name) else reader.read(name)
        row = tensor.detach().float().reshape(-1)
        if not is_finite(row):
            raise InputError(f"{reader.source}: tensor {name!r} holds NaN or infinity, so it cannot be merged.")
        rows.append(row)
    return torch.stack(rows)
