"""DELLA-Merging (Deep et al. 2024, arXiv 2406.11617): drop at random, small entries sooner (MAGPRUNE), then merge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from mergeline.errors import InputError
from mergeline.merging.options import KeepRatio, Seed
from mergeline.merging.random_masks import uniforms
from mergeline.merging.registry import method, row_length
from mergeline.merging.sign_election import elect_and_merge
from mergeline.merging.weights import check_weights, weighted_sum

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from mergeline.merging.registry import Piece

Spread = Annotated[float, Field(ge=0, lt=0.5)]
RANKED = 1 << 18  # entries whose ranks are held at a time


@method("della", needs_base=True, whole_rows=True, symmetric=False)
def della(
    task_vectors: Tensor,
    *,
    where: Piece,
    keep_ratio: KeepRatio = 0.5,
    spread: Spread = 0.1,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
    combine: Literal["mean", "sum"] = "mean",
    seed: Seed = 0,
) -> Tensor:
    """Entries are dropped at random, small ones sooner, and rescaled; those with the elected sign are averaged.

    t_i = m_i tau_i / r_i with m_i and r_i of `magprune`; s = sign(sum_i w_i t_i), + where that is 0;
    tau = scale * sum_{i: sign(t_i) = s} w_i t_i / sum_{i: sign(t_i) = s} w_i   (the steps drop, elect and fuse).
    task_vectors: [n, c] float32, whole rows of a tensor. keep_ratio, spread, seed: see `magprune`. scale: lambda.
    weights: n numbers >= 0, None is all 1. combine: the mean or the sum of what agrees. Returns [c] float32.
    """
    check_weights("della", weights, len(task_vectors))
    rows = magprune(task_vectors, keep_ratio, spread, seed, where)
    return elect_and_merge(rows, weights, combine, scale)


@method("della_linear", needs_base=True, whole_rows=True, symmetric=False)
def della_linear(
    task_vectors: Tensor,
    *,
    where: Piece,
    keep_ratio: KeepRatio = 0.5,
    spread: Spread = 0.1,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
    seed: Seed = 0,
) -> Tensor:
    """The sum of the task vectors after entries are dropped at random, small ones sooner, and the rest rescaled.

    tau = scale * sum_i w_i m_i tau_i / r_i with m_i and r_i of `magprune`: DELLA without the election of signs.
    task_vectors: [n, c] float32, whole rows. Options as of `della`; weights may be negative. Returns [c] float32.
    """
    check_weights("della_linear", weights, len(task_vectors), signed=True)
    rows = magprune(task_vectors, keep_ratio, spread, seed, where)
    return weighted_sum(rows, weights).mul_(scale).float()


def magprune(task_vectors: Tensor, keep_ratio: float, spread: float, seed: int, where: Piece) -> Tensor:
    """MAGPRUNE: each entry is kept with probability r_i, divided by it, else 0.

    r_i rises evenly with the rank of |tau_i| in its row of the weight matrix, from keep_ratio - spread (smallest) to
    keep_ratio + spread (largest); the paper's epsilon is 2 * spread. A row is one output: [out, all else]; a vector is
    one row. Equal magnitudes are ranked by index. keep_ratio 1 keeps everything.
    task_vectors: [n, c] float32, whole rows of a tensor from where.start on; overwritten.
    """
    import numpy as np

    if keep_ratio == 1:
        return task_vectors
    low, high = keep_ratio - spread, keep_ratio + spread
    if low <= 0 or high > 1:
        raise InputError(f"della: keep_ratio {keep_ratio} -+ spread {spread} leaves (0, 1]; lower the spread.")
    width = row_length(where.shape)
    chances = np.linspace(low, high, width, dtype=np.float32) if width > 1 else np.full(1, keep_ratio, np.float32)
    step = max(1, RANKED // width) * width
    for model, vector in enumerate(task_vectors.numpy()):
        for start in range(0, len(vector), step):
            entries = vector[start : start + step]
            by_row = np.empty((len(entries) // width, width), dtype=np.float32)
            np.put_along_axis(by_row, _order(entries.reshape(-1, width)), chances[None], axis=1)
            chance = by_row.reshape(-1)
            for first in range(0, len(entries), RANKED):
                part = slice(first, first + RANKED)
                numbers = uniforms(seed, where.name, model, where.start + start + first, len(entries[part]))
                entries[part] *= numbers < chance[part]
            entries /= chance
    return task_vectors


def _order(values: np.ndarray) -> np.ndarray:
    """Indices that sort each row of [r, c] float32 by magnitude, equal ones by index."""
    import numpy as np

    keys = np.abs(values).view(np.int32).astype(np.int64)  # the bits of numbers >= 0 are in their order
    keys <<= 32
    for start in range(0, keys.shape[1], RANKED):
        part = keys[:, start : start + RANKED]
        part |= np.arange(start, start + part.shape[1])
    keys.sort(axis=1)  # whole numbers, all different: no need of a stable sort, which is slower
    keys &= 0xFFFFFFFF
    return keys
