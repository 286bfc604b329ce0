"""The values between two layers, for all calibration batches: in memory while they are few, otherwise on disk."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

IN_MEMORY = 1 << 28
"""Bytes that are kept in memory; the values of further batches lie in files, one for each batch."""


class Shelf:
    """A list of values (mappings, sequences, tensors and numbers), one for each batch. A context manager."""

    def __init__(self, in_memory: int = IN_MEMORY) -> None:
        self._limit = in_memory
        self._held: list[Any] = []
        self._sizes: list[int] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def __len__(self) -> int:
        return len(self._held)

    def append(self, values: Any) -> None:
        """Add the values of another batch."""
        self._held.append(None)
        self._sizes.append(0)
        self[len(self) - 1] = values

    def __getitem__(self, batch: int) -> Any:
        """The values of a batch; what changes in them is lost unless they are put back."""
        held = self._held[batch]
        return torch.load(self._file(batch), weights_only=True) if held is None else held

    def __setitem__(self, batch: int, values: Any) -> None:
        size = sum(x.numel() * x.element_size() for x in tree_leaves(values) if isinstance(x, Tensor))
        if sum(self._sizes) - self._sizes[batch] + size > self._limit:
            torch.save(tree_map(_alone, values), self._file(batch))
            self._held[batch], self._sizes[batch] = None, 0
        else:
            self._held[batch], self._sizes[batch] = values, size
            if self._folder is not None:
                self._file(batch).unlink(missing_ok=True)

    def _file(self, batch: int) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="calibration.")
        return Path(self._folder.name) / f"{batch}.pt"


def _alone(value: Any) -> Any:
    """A part of a larger tensor without the rest."""
    return value.clone() if isinstance(value, Tensor) and value.untyped_storage().nbytes() > value.nbytes else value
