"""DARE (Yu et al. 2024, Language models are super Mario, arXiv 2311.03099): drop at random and rescale, then merge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from mergeline.merging.options import KeepRatio, Seed
from mergeline.merging.random_masks import drop_and_rescale
from mergeline.merging.registry import method
from mergeline.merging.sign_election import elect_and_merge
from mergeline.merging.weights import check_weights, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

    from mergeline.merging.registry import Piece


@method("dare_linear", needs_base=True, symmetric=False)
def dare_linear(
    task_vectors: Tensor,
    *,
    where: Piece,
    keep_ratio: KeepRatio = 0.5,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
    seed: Seed = 0,
) -> Tensor:
    """The sum of the task vectors after a random share of their entries is dropped and the rest rescaled.

    tau = scale * sum_i w_i m_i tau_i / r,  m_i ~ Bernoulli(r)   (the drop rate p of the paper is 1 - r).
    task_vectors: [n, c] float32. keep_ratio: r. scale: lambda. weights: n numbers, None is all 1. seed: of the masks,
    which belong to the tensor's name, the model's place and the entry. Returns [c] float32.
    """
    check_weights("dare_linear", weights, len(task_vectors), signed=True)
    rows = drop_and_rescale(task_vectors, keep_ratio, seed, where)
    return weighted_sum(rows, weights).mul_(scale).float()


@method("dare_ties", needs_base=True, symmetric=False)
def dare_ties(
    task_vectors: Tensor,
    *,
    where: Piece,
    keep_ratio: KeepRatio = 0.5,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
    combine: Literal["mean", "sum"] = "mean",
    seed: Seed = 0,
) -> Tensor:
    """Entries are dropped at random and the rest rescaled; of those, the ones with the elected sign are averaged.

    t_i = m_i tau_i / r,  m_i ~ Bernoulli(r);  s = sign(sum_i w_i t_i), + where that is 0;
    tau = scale * sum_{i: sign(t_i) = s} w_i t_i / sum_{i: sign(t_i) = s} w_i   (no trim beside the random drop).
    task_vectors: [n, c] float32. keep_ratio: r. scale: lambda. weights: n numbers >= 0, None is all 1. combine: the
    mean or the sum of what agrees. seed: of the masks. Returns [c] float32.
    """
    check_weights("dare_ties", weights, len(task_vectors))
    rows = drop_and_rescale(task_vectors, keep_ratio, seed, where)
    return elect_and_merge(rows, weights, combine, scale)
