"""Task arithmetic (Ilharco et al. 2023, arXiv 2212.04089): the base plus the scaled sum of the task vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergeline.balancing.sums import sum_over_models
from mergeline.merging.registry import method

if TYPE_CHECKING:
    from torch import Tensor


@method("task_arithmetic", needs_base=True)
def task_arithmetic(task_vectors: Tensor, *, scale: float = 0.3) -> Tensor:
    """The sum of the task vectors times one number.

    task_vectors: [n, c] float32. scale: lambda. Returns the merged task vector [c] float32.
    """
    return (scale * sum_over_models(task_vectors)).float()
