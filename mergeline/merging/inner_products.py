"""Inner products of whole rows in one pass, whose bits do not depend on how the rows are cut into chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

BLOCK = 1 << 14  # entries; a power of two, few enough that a block's products stay in the cache


def inner_products(chunks: Callable[[], Iterable[Tensor]], *, pairs: bool = True) -> list[list[float]]:
    """x_i . x_j of n rows given as [n, c] float32 chunks: n lists of n numbers.

    Products are exact in float64. Each block of 16384 entries, counted from the start of the row, is summed by halving
    (a fixed tree), and the sums of the blocks are added with one rounding. pairs: False leaves all but x_i . x_i at 0.
    """
    sums: dict[tuple[int, int], list[float]] = {}
    models = 0
    for block in _aligned(chunks()):
        models = len(block)
        precise = block.astype("f8")
        for i in range(models):
            for j in range(i, models if pairs else i + 1):
                sums.setdefault((i, j), []).append(_sum(precise[i] * precise[j]))
    totals = {pair: math.fsum(parts) for pair, parts in sums.items()}
    return [[totals.get((min(i, j), max(i, j)), 0.0) for j in range(models)] for i in range(models)]


def _aligned(chunks: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """The rows in blocks [n, BLOCK] float32 from entry 0 on, the last one filled up with zeros."""
    import numpy as np

    held, filled = np.zeros((0, BLOCK), dtype=np.float32), 0
    for chunk in chunks:
        rows, taken = chunk.cpu().numpy(), 0
        if len(held) != len(rows):
            held = np.zeros((len(rows), BLOCK), dtype=np.float32)
        while taken < rows.shape[1]:
            part = rows[:, taken : taken + BLOCK - filled]
            taken += part.shape[1]
            if part.shape[1] == BLOCK:
                yield part
                continue
            held[:, filled : filled + part.shape[1]] = part
            filled = (filled + part.shape[1]) % BLOCK
            if not filled:
                yield held
    if filled:
        width = 1 << (filled - 1).bit_length()  # the tree over the zeros beyond adds nothing
        held[:, filled:width] = 0
        yield held[:, :width]


def _sum(values: np.ndarray) -> float:
    """The sum of a power of two of float64 numbers, as a tree of element by element additions; they are overwritten."""
    while len(values) > 1:
        half = len(values) // 2
        values[:half] += values[half:]
        values = values[:half]
    return float(values[0])
