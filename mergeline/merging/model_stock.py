"""Model stock (Jang et al. 2024, arXiv 2403.19522): how far to go from the base is read off the angle of the models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from mergeline.merging.registry import method
from mergeline.merging.slerp import products_of_rows
from mergeline.merging.weights import weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


@method(
    "model_stock", needs_base=True, statistics=products_of_rows, granularity="tensor", models=(2, None), idempotent=True
)
def model_stock(task_vectors: Tensor, *, statistics: dict[str, Any]) -> Tensor:
    """The mean of the task vectors, the shorter the less they agree: the point nearest to the centre of their cloud.

    tau = t * sum_i tau_i / n,  t = n cos / (1 + (n - 1) cos), cos the cosine of two task vectors
    task_vectors: [n, c] float32. statistics: inner products of the whole task vectors. Returns [c] float32.
    """
    n = len(task_vectors)
    return weighted_sum(task_vectors, None).mul_(interpolation_ratio(statistics["products"]) / n).float()


def interpolation_ratio(products: Sequence[Sequence[float]]) -> float:
    """t in [0, 1]. Of more than two task vectors the mean cosine of the pairs is taken, a negative one as 0.

    A zero task vector is at right angles to all others.
    """
    n = len(products)
    norms = [math.sqrt(products[i][i]) for i in range(n)]
    pairs = [(products[i][j], norms[i] * norms[j]) for i, j in combinations(range(n), 2)]
    cosine = math.fsum(product / norm if norm else 0.0 for product, norm in pairs) / len(pairs)
    cosine = min(max(cosine, 0.0), 1.0)
    return n * cosine / (1 + (n - 1) * cosine)
