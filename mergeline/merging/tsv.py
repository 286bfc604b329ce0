"""TSV-Merge (Gargiulo et al. 2025, Task singular vectors: reducing task interference, arXiv 2412.00081)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergeline.merging.matrices import merge_matrices, nearest_orthonormal, singular
from mergeline.merging.registry import method

if TYPE_CHECKING:
    from torch import Tensor


@method("tsv", needs_base=True, whole_tensors=True, symmetric=False)  # another order rounds differently
def tsv(task_vectors: Tensor, *, scale: float = 1.0, matrix: bool = True) -> Tensor:
    """Each task keeps its strongest directions, and the directions of all tasks are made orthogonal to each other.

    tau_i ~ U_i S_i V_i^T, the first min(out, in) // n triplets of its SVD, one at least;  tau = scale * P S Q^T, where
    S = diag(S_1, ..., S_n), and P and Q are the orthonormal matrices nearest to [U_1 ... U_n] and [V_1 ... V_n].
    task_vectors: [n, *shape] float32. scale: alpha. matrix: False averages the tensor, as vectors and scalars are
    averaged. Returns the merged task vector [*shape] float32; the SVDs are float32, one task vector at a time.
    """
    return merge_matrices(task_vectors, _merge, scale=scale, matrix=matrix)


def _merge(parts: Tensor) -> Tensor:
    import torch

    share = max(1, min(parts.shape[1:]) // len(parts))
    triplets = [singular(part, share) for part in parts]
    lefts, values, rights = (torch.cat(found, dim=-1) for found in zip(*triplets, strict=True))
    if not len(values):
        return torch.zeros_like(parts[0])
    return nearest_orthonormal(lefts) * values @ nearest_orthonormal(rights).T
