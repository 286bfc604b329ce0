"""Heads: the parts of a module that belong to one task, and are not merged. Their tensors may differ in shape."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from mergeline.checkpoints.tensors import Reader, ReaderView
from mergeline.errors import InputError, nearest


def is_of(name: str, head: str) -> bool:
    """Whether a tensor is that of a head, or of a layer in it."""
    return name == head or name.startswith(head + ".")


def patterns_of(heads: Collection[str]) -> list[str]:
    """Patterns of the names of all tensors of heads."""
    return [pattern for head in heads for pattern in (head, f"{head}.*")]


def head_tensors(checkpoint: Reader, head: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint's head. Raises InputError where it has none of that name."""
    found = {name: checkpoint.read(name) for name in checkpoint.names() if is_of(name, head)}
    if not found:
        layers = sorted({name.rpartition(".")[0] for name in checkpoint.names()})
        raise InputError(f"{checkpoint.source}: no tensor belongs to the head '{head}'{nearest(head, layers)}")
    return found


def with_one_head(readers: Sequence[Reader], heads: Collection[str]) -> list[Reader]:
    """The checkpoints, all with the heads of the first one; equal objects stay equal objects.

    So they fit each other, and what is merged of them carries the first model's heads.
    Raises InputError where the first has none of a name.
    """
    if not heads or not readers:
        return list(readers)
    first = readers[0]
    for head in heads:
        if not any(is_of(name, head) for name in first.names()):
            head_tensors(first, head)  # says what is near
    views = {id(reader): _WithHeadsOf(first, reader, heads) for reader in readers}
    return [views[id(reader)] for reader in readers]


class _WithHeadsOf(ReaderView):
    """A checkpoint whose heads are those of another one."""

    def __init__(self, other: Reader, inner: Reader, heads: Collection[str]) -> None:
        super().__init__(inner)
        self._other = other
        self._of_heads = {name for name in other.names() if any(is_of(name, head) for head in heads)}
        own = (name for name in inner.names() if not any(is_of(name, head) for head in heads))
        self._names = sorted([*own, *self._of_heads])

    def _from(self, name: str) -> Reader:
        return self._other if name in self._of_heads else self._inner

    def names(self) -> list[str]:
        """All names, sorted."""
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._from(name).shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor."""
        return self._from(name).dtype(name)

    def read(self, name: str) -> Tensor:
        """The whole tensor."""
        return self._from(name).read(name)

    def read_slice(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop)."""
        return self._from(name).read_slice(name, start, stop)

    def read_flat(self, name: str, start: int, stop: int) -> Tensor:
        """Entries [start, stop), flat."""
        return self._from(name).read_flat(name, start, stop)

    def reads_parts(self, name: str) -> bool:
        """As the reader that the tensor is from."""
        return self._from(name).reads_parts(name)

    def tied(self) -> dict[str, str]:
        """Ties within what is not of a head."""
        return self._kept(self._inner.tied())

    def aliases(self) -> dict[str, str]:
        """Aliases within what is not of a head."""
        return self._kept(self._inner.aliases())

    def _kept(self, pairs: dict[str, str]) -> dict[str, str]:
        return {name: other for name, other in pairs.items() if {name, other} <= set(self._names) - self._of_heads}

    def __contains__(self, name: object) -> bool:
        return name in self._names
