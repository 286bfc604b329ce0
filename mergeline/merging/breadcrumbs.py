"""Model breadcrumbs (Davari and Belilovsky 2023, arXiv 2312.06795): drop the small entries and the outliers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from mergeline.merging.options import KeepRatio
from mergeline.merging.registry import method
from mergeline.merging.sign_election import elect_and_merge
from mergeline.merging.trimming import magnitude_thresholds, zero_above, zero_below
from mergeline.merging.weights import check_weights, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

OutlierRatio = Annotated[float, Field(ge=0, lt=1)]


def bounds_of_magnitude(
    chunks: Callable[[], Iterable[Tensor]], size: int, *, keep_ratio: KeepRatio, outlier_ratio: OutlierRatio
) -> dict[str, Any]:
    """Of each whole task vector: the smallest and the largest |tau| that is kept; entries equal to them are kept too.

    int(d * keep_ratio) entries are kept, at least one; the int(d * outlier_ratio) largest are outliers, fewer where
    both do not fit.
    """
    kept = max(1, int(size * keep_ratio))
    outliers = min(int(size * outlier_ratio), size - kept)
    low, high = magnitude_thresholds(chunks, size, [size - outliers - kept, size - outliers - 1])
    return {"low": low, "high": high}


@method("breadcrumbs", needs_base=True, statistics=bounds_of_magnitude)
def breadcrumbs(
    task_vectors: Tensor,
    *,
    statistics: dict[str, Any],
    keep_ratio: KeepRatio = 0.1,
    outlier_ratio: OutlierRatio = 0.01,
    scale: float = 0.3,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """The sum of the task vectors without their smallest entries and without their outliers.

    tau = scale * sum_i w_i t_i,  t_i = tau_i where low_i <= |tau_i| <= high_i, else 0.
    task_vectors: [n, c] float32. statistics: of the whole task vectors. keep_ratio: share that survives, below the
    outlier_ratio largest. scale: alpha. weights: n numbers, None is all 1. Returns [c] float32.
    """
    check_weights("breadcrumbs", weights, len(task_vectors), signed=True)
    return weighted_sum(_between(task_vectors, statistics), weights).mul_(scale).float()


@method("breadcrumbs_ties", needs_base=True, statistics=bounds_of_magnitude)
def breadcrumbs_ties(
    task_vectors: Tensor,
    *,
    statistics: dict[str, Any],
    keep_ratio: KeepRatio = 0.1,
    outlier_ratio: OutlierRatio = 0.01,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
    combine: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Neither the smallest entries nor the outliers; of the rest, those with the elected sign are averaged.

    t_i as in `breadcrumbs`; s = sign(sum_i w_i t_i), + where that is 0;
    tau = scale * sum_{i: sign(t_i) = s} w_i t_i / sum_{i: sign(t_i) = s} w_i.
    task_vectors: [n, c] float32. weights: n numbers >= 0, None is all 1. combine: the mean or the sum of what agrees.
    The other options as of `breadcrumbs`. Returns [c] float32.
    """
    check_weights("breadcrumbs_ties", weights, len(task_vectors))
    return elect_and_merge(_between(task_vectors, statistics), weights, combine, scale)


def _between(task_vectors: Tensor, statistics: dict[str, Any]) -> Tensor:
    return zero_below(zero_above(task_vectors, statistics["high"]), statistics["low"])
