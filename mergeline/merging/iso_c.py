"""Iso-C (Marczak et al. 2025, No task left behind: isotropic model merging, arXiv 2502.04959)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergeline.merging.matrices import merge_matrices, singular
from mergeline.merging.registry import method
from mergeline.merging.weights import weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


@method("iso_c", needs_base=True, whole_tensors=True)
def iso_c(task_vectors: Tensor, *, scale: float = 1.0, matrix: bool = True) -> Tensor:
    """The sum of the task vectors with all its directions made equally strong.

    U S V^T = sum_i tau_i (SVD),  tau = scale * mean(S) * U V^T;  directions that the sum does not have stay 0, and the
    mean is over the others.
    task_vectors: [n, *shape] float32. scale: alpha. matrix: False averages the tensor, as vectors and scalars are
    averaged. Returns the merged task vector [*shape] float32; the SVD is float32.
    """

    def merge(parts: Tensor) -> Tensor:
        total = weighted_sum(parts, None).float()
        left, values, right = singular(total)
        return left @ right.T * values.mean() if len(values) else total

    return merge_matrices(task_vectors, merge, scale=scale, matrix=matrix)
