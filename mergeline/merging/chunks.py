"""Task models and their bases as flat float32 rows, a bounded piece at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from mergeline.checkpoints.finite import is_finite
from mergeline.checkpoints.readers import Reader
from mergeline.errors import InputError


@dataclass(frozen=True)
class Chunk:
    """Flat entries [start, start + c) of one tensor, in memory that the next chunk uses again.

    rows: [n, c] float32. bases: one per family [k, c], or None. evidence: [n, c], or None.
    """

    start: int
    rows: Tensor
    bases: Tensor | None
    evidence: Tensor | None


def step_of(shape: tuple[int, ...], size: int) -> int:
    """Entries of a tensor that are taken at a time: at most `size`, whole rows if they fit."""
    width = prod(shape[1:])
    return size // width * width if 0 < width <= size else size


class Buffer:
    """Float32 memory that is used again: fresh memory costs several times what is done with it."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def take(self, rows: int, width: int) -> Tensor:
        """[rows, width], uninitialised and contiguous; what was taken before is lost."""
        if self._memory.numel() < rows * width:
            self._memory = torch.empty(rows * width)
        return self._memory[: rows * width].view(rows, width)


@dataclass(frozen=True, eq=False)
class TaskModels:
    """n task models of one architecture. families: the k distinct bases, none for methods that work without one.

    family_of: the index of each model's base among them. Then row i of a chunk is model i - its base (a task vector),
    otherwise model i itself. A base is read once, however many models started from it. evidence: of each model, one
    number per parameter, or nothing.
    """

    models: Sequence[Reader]
    families: Sequence[Reader] = ()
    family_of: Sequence[int] = ()
    evidence: Sequence[Reader] = ()

    def chunks(self, name: str, size: int, start: int = 0, stop: int | None = None) -> Iterator[Chunk]:
        """Entries [start, stop) of one tensor in pieces of at most `size` per model, of whole rows if they fit."""
        yield from self._chunks(name, size, start, stop, Buffer(), Buffer(), Buffer())

    def rows(self, names: Sequence[str], size: int) -> Iterator[Tensor]:
        """The named tensors one after the other as [n, c] float32 pieces: together the flat (task) vectors."""
        rows, bases = Buffer(), Buffer()
        plain = TaskModels(self.models, self.families, self.family_of)
        for name in names:
            for chunk in plain._chunks(name, size, 0, None, rows, bases, Buffer()):
                yield chunk.rows

    def without_bases(self) -> "TaskModels":
        """The same models for a method that works on the models themselves."""
        return TaskModels(self.models)

    def _chunks(
        self, name: str, size: int, start: int, stop: int | None, rows: Buffer, bases: Buffer, evidence: Buffer
    ) -> Iterator[Chunk]:
        shape = self.models[0].shape(name)
        stop = prod(shape) if stop is None else stop
        step = step_of(shape, size)
        models, families, known = (_Columns(readers, name) for readers in (self.models, self.families, self.evidence))
        for first in range(start, stop, step):
            last = min(first + step, stop)
            values = models.read(first, last, rows)
            origins = families.read(first, last, bases) if self.families else None
            if origins is not None:
                for row, family in zip(values, self.family_of, strict=True):
                    row -= origins[family]
            yield Chunk(first, values, origins, known.read(first, last, evidence) if self.evidence else None)


class _Columns:
    """One tensor of several checkpoints."""

    def __init__(self, readers: Sequence[Reader], name: str) -> None:
        self._readers, self._name = readers, name
        # A view that computes whole tensors computes each once, not once per chunk.
        self._whole = {id(reader): reader.read(name).reshape(-1) for reader in readers if not reader.reads_parts(name)}

    def read(self, start: int, stop: int, buffer: Buffer) -> Tensor:
        """Entries [start, stop): [n, c] float32. InputError where one is not finite."""
        rows = buffer.take(len(self._readers), stop - start)
        for reader, row in zip(self._readers, rows, strict=True):
            whole = self._whole.get(id(reader))
            part = reader.read_flat(self._name, start, stop) if whole is None else whole[start:stop]
            row.copy_(part.detach())
            if not is_finite(row):
                what = "numbers beyond the range of float32" if is_finite(part) else "NaN or infinity"
                raise InputError(f"{reader.source}: tensor {self._name!r} holds {what}, so it cannot be merged.")
        return rows
