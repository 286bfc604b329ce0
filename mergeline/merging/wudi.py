"""WUDI-Merging (Cheng et al. 2025, Whoever started the interference should end it, arXiv 2503.08099)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mergeline.merging.least_squares import solve
from mergeline.merging.matrices import merge_matrices
from mergeline.merging.registry import method
from mergeline.merging.weights import weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


@method("wudi", needs_base=True, whole_tensors=True)
def wudi(
    task_vectors: Tensor,
    *,
    steps: Annotated[int, Field(ge=0)] = 300,
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5,
    scale: float = 1.0,
    matrix: bool = True,
) -> Tensor:
    """The sum of the task vectors, moved until it disturbs each task least where the task vector says it has inputs.

    loss(tau) = sum_i |(tau - tau_i) tau_i^T|^2 / |tau_i|^2 (Frobenius), some steps of Adam from tau = sum_i tau_i; its
    gradient is 2 (tau G - sum_i tau_i G_i),  G_i = tau_i^T tau_i / |tau_i|^2,  G = sum_i G_i
    task_vectors: [n, *shape] float32. learning_rate: the most that a step moves an entry, about, in units of the
    weights, as the paper has it. matrix: False averages the tensor, as vectors and scalars are averaged. Returns the
    merged task vector [*shape] float32. G in float64, the steps in float32.
    """
    import torch

    def merge(parts: Tensor) -> Tensor:
        start, gram, pull = _normal_equations(parts)
        start, gram, pull = start.float(), gram.float(), pull.float()
        moved = torch.zeros_like(start)
        adam = torch.optim.Adam([moved], lr=learning_rate)
        for _ in range(steps):
            moved.grad = 2 * (moved @ gram - pull)
            adam.step()
        return start + moved

    return merge_matrices(task_vectors, merge, scale=scale, matrix=matrix)


@method("wudi_closed", needs_base=True, whole_tensors=True, symmetric=False)  # another order rounds differently
def wudi_closed(
    task_vectors: Tensor,
    *,
    ridge: Annotated[float, Field(gt=0)] = 1e-6,
    scale: float = 1.0,
    matrix: bool = True,
) -> Tensor:
    """The least disturbance of `wudi` itself, by its normal equations: RegMean with the task vectors as inputs.

    tau = sum_i tau_i + D,  D = (sum_i (tau_i - sum_j tau_j) G_i) (G + ridge * mean(diag G) * I)^-1,
    G_i = tau_i^T tau_i / |tau_i|^2,  G = sum_i G_i
    task_vectors: [n, *shape] float32. ridge: a larger one stays nearer to the sum, as fewer steps do; directions that
    no task vector has stay at it, too. matrix: False averages the tensor, as vectors and scalars are averaged. Returns
    the merged task vector [*shape] float32, solved in float64: squaring the task vectors squares their condition
    number, which is beyond float32.
    """

    def merge(parts: Tensor) -> Tensor:
        start, gram, pull = _normal_equations(parts)
        size = float(gram.diagonal().mean())
        return start + solve(gram / size, pull / size, ridge) if size else start

    return merge_matrices(task_vectors, merge, scale=scale, matrix=matrix)


def _normal_equations(parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sum_i tau_i [out, in], G [in, in] and sum_i (tau_i - sum_j tau_j) G_i [out, in], in float64."""
    import torch

    start = weighted_sum(parts, None)
    gram, pull = start.new_zeros(start.shape[1], start.shape[1]), torch.zeros_like(start)
    for part in parts:
        own = part.double()
        size = own.square().sum()
        if size > 0:
            product = own.T @ own / size
            gram += product
            pull += (own - start) @ product
    return start, gram, pull
