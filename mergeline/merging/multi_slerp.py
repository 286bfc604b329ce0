"""The weighted mean of n models on the sphere (Buss and Fillmore 2001, Spherical averages and applications)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mergeline.merging.registry import method
from mergeline.merging.slerp import products_of_rows
from mergeline.merging.weights import check_weights, weighted_sum

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

STEPS = 100


@method("multi_slerp", needs_base=False, statistics=products_of_rows, granularity="tensor", idempotent=True)
def multi_slerp(models: Tensor, *, statistics: dict[str, Any], weights: Sequence[float] | None = None) -> Tensor:
    """The point on the sphere nearest to all models: the directions' mean along arcs, times the mean norm.

    theta = (sum_i w_i |theta_i|) m,  m = argmin over unit vectors of sum_i w_i angle(m, theta_i / |theta_i|)^2,
    sum_i w_i = 1. For two models of equal norm it is `slerp`; where the directions cancel it is the weighted average.
    models: [n, c] float32. statistics: inner products of the whole rows. weights: n numbers >= 0, divided by their sum;
    None weighs all alike. Returns [c] float32.
    """
    check_weights("multi_slerp", weights, len(models))
    return weighted_sum(models, spherical_mean(statistics["products"], weights)).float()


def spherical_mean(products: Sequence[Sequence[float]], weights: Sequence[float] | None) -> list[float]:
    """The coefficients of the rows in their mean on the sphere, from their inner products alone.

    The mean lies in the span of the rows, m = sum_i c_i u_i, u_i = row i / its norm. Each step goes from m along the
    mean of the arcs to the rows (their logarithms at m), as in algorithm A1 of Buss and Fillmore.
    """
    import numpy as np

    gram = np.asarray(products, dtype=np.float64)
    share = np.ones(len(gram)) if weights is None else np.asarray(weights, dtype=np.float64)
    share = share / share.sum()
    norms = np.sqrt(gram.diagonal())
    inverse = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)  # a zero row has no direction
    cosines = (gram * inverse[:, None] * inverse).clip(-1, 1)
    mean = share * (norms > 0)
    length = np.sqrt(max(mean @ cosines @ mean, 0))
    if length < 1e-6 * mean.sum() or not mean.any():
        return share.tolist()
    mean = mean / length
    for _ in range(STEPS):
        step = _mean_of_logarithms(cosines, mean, share * (norms > 0))
        size = np.sqrt(max(step @ cosines @ step, 0))
        if size < 1e-12:
            break
        mean = np.cos(size) * mean + np.sin(size) / size * step
        mean = mean / np.sqrt(mean @ cosines @ mean)
    return (mean * inverse * (share @ norms)).tolist()


def _mean_of_logarithms(cosines: np.ndarray, mean: np.ndarray, share: np.ndarray) -> np.ndarray:
    """sum_i share_i log_m(u_i) as coefficients, log_m(u) = angle / sin(angle) * (u - cos(angle) m)."""
    import numpy as np

    cosine = (cosines @ mean).clip(-1, 1)
    angle = np.arccos(cosine)
    stretch = share / np.sinc(angle / np.pi).clip(1e-6)
    return stretch - (stretch @ cosine) * mean
