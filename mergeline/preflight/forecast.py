"""What a merge will take: a trial on random numbers, here and now, stretched to the size of the checkpoints.

Constants would be those of another machine. The trial runs the engine itself: its passes, its chunks, one thread.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergeline.balancing.order_statistics import HELD_ENTRIES
from mergeline.checkpoints.readers import TensorReader
from mergeline.errors import InputError
from mergeline.merging.engine import CHUNK, merge
from mergeline.merging.registry import get, row_length

WIDTH = 1 << 10
FLOAT = 4  # bytes of a float32
SEARCH = 3 * (1 << 24)  # what the search for order statistics holds: candidates, histogram, sample
RUNTIME = 150 << 20  # of an interpreter with torch


@dataclass(frozen=True)
class Trial:
    """Seconds for one entry of the result, and how often each input was read."""

    seconds: float
    passes: float


def trial(
    method: str, options: Mapping[str, Any], *, models: int, bases: int, granularity: str | None, dtype: torch.dtype
) -> Trial | None:
    """Merge random models of the same number and dtype; None for a method that cannot do without evidence of real ones,
    or works on whole matrices: then the shapes decide what an entry costs.

    Large enough for the methods to search for their order statistics as they do in large models.
    """
    if get(method).evidence is not None or get(method).whole_tensors:
        return None
    enough = HELD_ENTRIES // models // WIDTH + WIDTH // 4
    try:
        for rows in (8, enough):  # the first pays for what is imported and allocated once
            found = _run(rows, method, options, models, bases, granularity, dtype)
    except InputError:
        return None
    return found


def _run(
    rows: int,
    method: str,
    options: Mapping[str, Any],
    models: int,
    bases: int,
    granularity: str | None,
    dtype: torch.dtype,
) -> Trial:
    """One merge of [rows, WIDTH] matrices."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(rows, WIDTH, generator=generator).mul_(0.02) for _ in range(max(1, bases))]
    noise = torch.randn(rows + models, WIDTH, generator=generator).mul_(0.002)
    state = [start[i % len(start)] + noise[i : i + rows] for i in range(models)]
    readers = [_Counting(tensor.to(dtype)) for tensor in state]
    origins = [_Counting(tensor.to(dtype)) for tensor in start]
    given = [origins[i % len(origins)] for i in range(models)] if get(method).needs_base else None
    began = time.process_time()
    for _ in merge(readers, base=given, method=method, granularity=granularity, **options).pieces():
        pass
    took = time.process_time() - began
    return Trial(took / (rows * WIDTH), readers[0].seen / (rows * WIDTH))


class _Counting(TensorReader):
    """A checkpoint of one tensor that counts how many entries are read of it."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__({"weight": tensor})
        self.seen = 0

    def read_flat(self, name: str, start: int, stop: int) -> Tensor:
        """Entries [start, stop), counted."""
        self.seen += stop - start
        return super().read_flat(name, start, stop)


def memory(method: str, shapes: Sequence[tuple[int, ...]], *, models: int, bases: int, aligned: bool) -> int:
    """Anonymous bytes of the merge itself, about: files that are mapped into memory are not counted."""
    entry = get(method)
    largest = max((torch.Size(shape).numel() for shape in shapes), default=0)
    columns = min(CHUNK, largest)
    if entry.whole_tensors:
        columns = largest
    elif entry.whole_rows:
        columns = max(columns, max((row_length(shape) for shape in shapes), default=0))
    buffers = (models + bases + 4) * columns * FLOAT
    views = (models + bases) * largest * FLOAT if aligned else 0  # an aligned view computes whole tensors
    return RUNTIME + buffers + views + (SEARCH if entry.statistics else 0)


def free_space(folder: Path) -> int:
    """Bytes that the disk of a folder, which need not exist yet, has left."""
    return shutil.disk_usage(existing_parent(folder)).free


def existing_parent(path: Path) -> Path:
    """The path itself, or the innermost of the folders around it that exists."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return place
