"""Sums over models whose bits depend on nothing but the addends."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def sum_over_models(rows: Tensor, *, out: Tensor | None = None) -> Tensor:
    """[n, c] float32 -> [c] float64, added row by row. out: [2 or more, c] float64 to work in (one row for one model).

    `Tensor.sum(dim=0)` associates differently from column to column, so its bits depend on where a chunk begins. In
    float64 the sum of float32 values is exact unless their magnitudes span more than 2^29 / n, so the order of the
    models does not show either, and n equal rows average to themselves.
    """
    total = rows[0].double() if out is None else out[0].copy_(rows[0])
    for row in rows[1:]:
        total += row.double() if out is None else out[1].copy_(row)
    return total
