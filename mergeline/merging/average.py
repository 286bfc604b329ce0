"""The (weighted) average of the task models (Wortsman et al. 2022, Model soups, arXiv 2203.05482)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergeline.balancing.sums import sum_over_models
from mergeline.errors import InputError
from mergeline.merging.registry import method

if TYPE_CHECKING:
    from torch import Tensor


@method("average", needs_base=False, idempotent=True)
def average(models: Tensor, *, weights: Sequence[float] | None = None) -> Tensor:
    """The mean of the task models, each with its weight.

    models: [n, c] float32. weights: n numbers >= 0, divided by their sum; None weighs all alike. Returns [c] float32.
    """
    if weights is None:
        return (sum_over_models(models) / len(models)).float()
    if len(weights) != len(models) or min(weights) < 0 or sum(weights) == 0:
        raise InputError(f"average: weights must be {len(models)} numbers >= 0, not all zero: {list(weights)}.")
    precise = models.double()
    return (sum_over_models(precise.new_tensor(weights)[:, None] * precise) / sum(weights)).float()
