"""Fisher merging (Matena and Raffel 2022, Merging models with Fisher-weighted averaging, arXiv 2111.09832)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mergeline.merging.parts import in_parts
from mergeline.merging.registry import method
from mergeline.merging.weights import check_weights

if TYPE_CHECKING:
    from torch import Tensor


@method("fisher", needs_base=False, evidence="fisher", idempotent=True)
def fisher(
    models: Tensor,
    *,
    evidence: Tensor,
    weights: Sequence[float] | None = None,
    floor: Annotated[float, Field(gt=0)] = 1e-12,
) -> Tensor:
    """The average of the task models, each entry weighted by how much its model's predictions depend on it.

    theta = sum_i w_i F_i theta_i / sum_i w_i F_i,  F_i = max(diagonal Fisher of model i, floor).
    models, evidence: [n, c] float32, the models and their Fishers. weights: n numbers >= 0; None is all 1. floor: where
    no model depends on an entry the result is its average. Returns [c] float32.
    """
    import torch

    check_weights("fisher", weights, len(models))

    def merge(part: Tensor, importance: Tensor) -> Tensor:
        merged = part.new_zeros(part.shape[1], dtype=torch.float64)
        total = torch.zeros_like(merged)
        for index, (model, own) in enumerate(zip(part, importance, strict=True)):
            share = own.double().clamp_(min=floor).mul_(1.0 if weights is None else weights[index])
            total += share
            merged += share.mul_(model)
        return merged.div_(total)

    return in_parts(merge, models, evidence)
