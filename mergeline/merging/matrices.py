"""Task vectors as matrices: what the methods that work on whole weights do with every tensor, and their SVD."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mergeline.merging.weights import weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


def merge_matrices(
    task_vectors: Tensor, kernel: Callable[[Tensor], Tensor], *, scale: float, matrix: bool = True
) -> Tensor:
    """scale * kernel(task vectors as matrices); scale * the mean of tensors that are none, or are not to be.

    task_vectors: [n, *shape] float32. kernel: [n, out, in] float32 -> [out, in]; in is all axes but the first, so a
    convolution is [out, in * k * k]. Vectors, scalars and empty tensors are no matrices. Returns [*shape] float32.
    """
    shape = task_vectors.shape[1:]
    if matrix and len(shape) > 1 and shape.numel():
        merged = kernel(task_vectors.reshape(len(task_vectors), shape[0], -1))
    else:
        merged = weighted_sum(task_vectors, None) / len(task_vectors)
    return merged.reshape(shape).mul(scale).float()


def singular(matrix: Tensor, count: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular triplets of [out, in]: U [out, k], s [k] > 0, V [in, k], at most `count` of them.

    Triplets below the rounding of the matrix are left out: their directions are the library's, not the data's.
    """
    import torch

    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    rounding = values[0] * max(matrix.shape) * torch.finfo(matrix.dtype).eps
    kept = int((values[:count] > rounding).sum())
    return left[:, :kept], values[:kept], right[:kept].T


def nearest_orthonormal(columns: Tensor) -> Tensor:
    """P Q^T of the SVD P D Q^T of [rows, k]: its polar factor, the nearest matrix with orthonormal columns.

    Where the columns depend on each other it is a partial isometry: directions that they do not span stay 0.
    """
    left, _, right = singular(columns)
    return left @ right.T
