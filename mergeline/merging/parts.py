"""Kernels that make several temporaries work on a part of a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PART = 1 << 16  # entries: temporaries of twice that size come as fresh memory from the system, at three times the cost


def in_parts(kernel: Callable[..., Tensor], rows: Tensor, *others: Tensor) -> Tensor:
    """kernel(rows, *others) of an elementwise kernel, part by part: [n, c] float32, overwritten -> [c] float32.

    others: [n, c] too, cut likewise. The result lies in the first row.
    """
    for start in range(0, rows.shape[1], PART):
        part = slice(start, start + PART)
        rows[0, part] = kernel(rows[:, part], *(other[:, part] for other in others))
    return rows[0]
