"""Which entries are small and which are outliers: thresholds of |tau| as order statistics, and the cut itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def magnitude_thresholds(chunks: Callable[[], Iterable[Tensor]], size: int, ranks: Sequence[int]) -> list[list[float]]:
    """|tau| at the 0-based ranks, smallest first: one list of n numbers per rank (float32 values)."""
    from mergeline.balancing.order_statistics import order_statistics

    def magnitudes() -> Iterator[Tensor]:
        return (chunk.abs_() for chunk in chunks())

    return order_statistics(magnitudes, size, ranks).T.tolist()


def zero_below(rows: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Entries with |x| < their row's threshold become 0; [n, c] float32, overwritten."""
    import torch

    for row, threshold in zip(rows, thresholds, strict=True):
        if threshold > 0:
            row.copy_(torch.hardshrink(row, _before(threshold)))  # it keeps |x| > bound
    return rows


def zero_above(rows: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Entries with |x| > their row's threshold become 0; [n, c] float32, overwritten."""
    import torch

    for row, threshold in zip(rows, thresholds, strict=True):
        row.sub_(torch.hardshrink(row, threshold))  # what remains is x - 0 or x - x
    return rows


def _before(value: float) -> float:
    """The float32 number next to a positive one, towards 0."""
    import numpy as np

    return float(np.nextafter(np.float32(value), np.float32(0)))
