"""The competition of PCB-Merging: how strongly each parameter of each task model speaks (the score b = intra x inter).

`u` [n, c] in [0, 1] is the magnitude of a task vector between its clip bounds. Every function is elementwise along the
parameters, so a chunk gives the same bits as the whole.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mergeline.balancing.sums import sum_over_models
from mergeline.errors import InputError, nearest

LARGEST_EXPONENT = 80  # exp(80) = 5.5e34 leaves float32 room for a sum over thousands of models


@dataclass(frozen=True)
class Variant:
    """One of the forms in which the authors' programs compute the method: the default clip ratio and the inter term."""

    clip_ratio: float
    inter: Callable[[Tensor, Tensor], Tensor]


def scores(task_vectors: Tensor, low: Tensor, high: Tensor, inter: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Score b [n, c] of every entry: its own magnitude (intra, section 3) times its agreement with the others (inter).

    task_vectors: [n, c] float32. low, high: clip bounds [n]. Scores are compared within a row only, so a common
    factor is free: beyond 80 models it keeps exp(n u^2) inside float32.
    """
    models = task_vectors.shape[0]
    u = relative_magnitude(task_vectors, low, high)
    intra = (u * u * models - max(0, models - LARGEST_EXPONENT)).exp_()
    return intra.mul_(inter(task_vectors, u))


def relative_magnitude(task_vectors: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """u [n, c]: |tau| clipped to [low, high] and mapped to [0, 1]; 0 in rows where the bounds meet."""
    width = high - low
    width = torch.where(width > 0, width, torch.inf)
    return clip_magnitude(task_vectors, low, high).sub_(low[:, None]).div_(width[:, None])


def clip_magnitude(task_vectors: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """|tau| clipped to its row's bounds: [n, c]."""
    return torch.clamp(task_vectors.abs(), low[:, None], high[:, None])


def find_variant(name: str) -> Variant:
    """The variant of that name, or an InputError with the nearest name."""
    if name not in VARIANTS:
        raise InputError(f"PCB variant {name!r} does not exist{nearest(name, VARIANTS, listed=True)}")
    return VARIANTS[name]


def _sum_of_values(task_vectors: Tensor, u: Tensor) -> Tensor:
    """tanh(tau_i * sum_j tau_j): does this entry pull where the sum of all pulls?"""
    return task_vectors.mul(sum_over_models(task_vectors).float()).tanh_()


def _sum_of_magnitudes(task_vectors: Tensor, u: Tensor) -> Tensor:
    """tanh(tau_i * sum_j sign(tau_j) u_j): the same with every task vector on the scale [-1, 1]."""
    return task_vectors.mul(sum_over_models(task_vectors.sign().mul_(u)).float()).tanh_()


def _pairs(task_vectors: Tensor, u: Tensor) -> Tensor:
    """sum_j tanh(x_i x_j), x = sign(tau) u; one tanh serves both rows. The only variant free of tau's scale."""
    x = task_vectors.sign().mul_(u)
    total = torch.zeros_like(x, dtype=torch.float64)
    for i in range(len(x)):
        for j in range(i, len(x)):
            agreement = (x[i] * x[j]).tanh_().double()
            total[i] += agreement
            if j != i:
                total[j] += agreement
    return total.float()


VARIANTS: dict[str, Variant] = {
    "reference": Variant(clip_ratio=0.0001, inter=_sum_of_values),
    "nlp": Variant(clip_ratio=0.01, inter=_sum_of_values),
    "vision": Variant(clip_ratio=0.01, inter=_sum_of_magnitudes),
    "pairwise": Variant(clip_ratio=0.01, inter=_pairs),
}
