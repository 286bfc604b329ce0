"""Weighted sums over models, and the check of the option `weights` that many methods have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergeline.balancing.sums import sum_over_models
from mergeline.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


def weighted_sum(rows: Tensor, weights: Sequence[float] | None) -> Tensor:
    """sum_i w_i row_i in float64, added row by row: [n, c] float32 -> [c] float64. weights: None is all 1."""
    if weights is None:
        return sum_over_models(rows)
    total = rows[0].double().mul_(weights[0])
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        total += row.double().mul_(weight)
    return total


def check_weights(method: str, weights: Sequence[float] | None, models: int, *, signed: bool = False) -> None:
    """InputError unless there is one number per task model; not negative and not all zero unless `signed`."""
    if weights is None:
        return
    if len(weights) != models or (not signed and (min(weights) < 0 or math.fsum(weights) == 0)):
        wanted = "" if signed else " >= 0, not all zero"
        raise InputError(f"{method}: weights must be {models} numbers{wanted}: {list(weights)}.")
