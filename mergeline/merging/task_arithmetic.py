"""Task arithmetic (Ilharco et al. 2023, arXiv 2212.04089): the base plus the scaled sum of the task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergeline.merging.registry import method
from mergeline.merging.weights import check_weights, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


@method("task_arithmetic", needs_base=True)
def task_arithmetic(task_vectors: Tensor, *, scale: float = 0.3, weights: Sequence[float] | None = None) -> Tensor:
    """The sum of the task vectors, each with its weight, times one number: scale * sum_i w_i tau_i.

    task_vectors: [n, c] float32. scale: lambda. weights: n numbers, a negative one forgets a task; None is all 1.
    Returns the merged task vector [c] float32.
    """
    check_weights("task_arithmetic", weights, len(task_vectors), signed=True)
    return weighted_sum(task_vectors, weights).mul_(scale).float()
