"""The (weighted) average of the task models (Wortsman et al. 2022, Model soups, arXiv 2203.05482)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergeline.merging.registry import method
from mergeline.merging.weights import check_weights, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


@method("average", needs_base=False, idempotent=True)
def average(models: Tensor, *, weights: Sequence[float] | None = None) -> Tensor:
    """The mean of the task models, each with its weight: sum_i w_i theta_i / sum_i w_i.

    models: [n, c] float32. weights: n numbers >= 0, divided by their sum; None weighs all alike. Returns [c] float32.
    """
    check_weights("average", weights, len(models))
    return weighted_sum(models, weights).div_(len(models) if weights is None else math.fsum(weights)).float()
