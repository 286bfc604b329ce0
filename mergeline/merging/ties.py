"""TIES-Merging (Yadav et al. 2023, arXiv 2306.01708): trim, elect sign, disjoint merge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mergeline.merging.inner_products import inner_products
from mergeline.merging.options import KeepRatio
from mergeline.merging.parts import PART, in_parts
from mergeline.merging.registry import method
from mergeline.merging.sign_election import Combine, Elect, elected_sign, merge_agreeing
from mergeline.merging.trimming import magnitude_thresholds, zero_below
from mergeline.merging.weights import check_weights

if TYPE_CHECKING:
    from torch import Tensor


def trims_and_majority(
    chunks: Callable[[], Iterable[Tensor]],
    size: int,
    *,
    keep_ratio: KeepRatio,
    elect: Elect,
    weights: Sequence[float] | None,
) -> dict[str, Any]:
    """Of each whole task vector: the smallest |tau| that is kept and the norm of what is kept; and the majority sign.

    The int(d * keep_ratio) + 1 largest magnitudes are kept, and all that equal the smallest of them (the authors'
    program). majority: the sign that most entries elect, 0 where they balance. norms: only where `elect` needs them.
    """
    rank = size - int(size * keep_ratio) - 1
    (trims,) = magnitude_thresholds(chunks, size, [max(rank, 0)])
    trims = trims if rank >= 0 else [0.0] * len(trims)

    def trimmed() -> Iterator[Tensor]:
        return (zero_below(part, trims) for chunk in chunks() for part in chunk.split(PART, dim=1))

    norms = []
    if elect in ("normmass", "normfrac"):
        products = inner_products(trimmed, pairs=False)
        norms = [products[i][i] ** 0.5 for i in range(len(trims))]
    check_weights("ties", weights, len(trims))
    votes = 0
    for rows in trimmed() if elect != "none" else ():
        sign = elected_sign(rows, elect, weights, norms)
        votes += 0 if sign is None else int(sign.double().sum())
    return {"trims": trims, "norms": norms, "majority": (votes > 0) - (votes < 0)}


@method("ties", needs_base=True, statistics=trims_and_majority)
def ties(
    task_vectors: Tensor,
    *,
    statistics: dict[str, Any],
    keep_ratio: KeepRatio = 0.2,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
    elect: Elect = "mass",
    combine: Combine = "mean",
) -> Tensor:
    """Each task keeps its largest entries; of those, the ones with the elected sign are averaged.

    t_i = tau_i where |tau_i| >= its trim, else 0;  s = sign(sum_i w_i t_i), the majority of all entries where that
    is 0;  tau = scale * sum_{i: sign(t_i) = s} w_i t_i / sum_{i: sign(t_i) = s} w_i.
    task_vectors: [n, c] float32. statistics: of the whole task vectors. keep_ratio: share that survives the trim.
    scale: lambda. weights: n numbers >= 0, None is all 1. elect, combine: as in the authors' program; `elect` by
    mass, shares of the norm or not at all, `combine` the mean, sum or largest of what agrees. Returns [c] float32.
    """
    check_weights("ties", weights, len(task_vectors))

    def merge(part: Tensor) -> Tensor:
        kept = zero_below(part, statistics["trims"])
        sign = elected_sign(kept, elect, weights, statistics["norms"])
        return merge_agreeing(kept, sign, statistics["majority"], weights, combine).mul_(scale)

    return in_parts(merge, task_vectors)
