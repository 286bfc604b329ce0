"""The competition of PCB-Merging: how strongly each parameter of each task model speaks (the score b = intra x inter).

`u` [n, c] in [0, 1] is the magnitude of a task vector between its clip bounds. Every function is elementwise along the
parameters, so a chunk gives the same bits as the whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergeline.balancing.pieces import buffers, pieces
from mergeline.balancing.sums import sum_over_models
from mergeline.errors import InputError, nearest

Inter = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
LARGEST_EXPONENT = 80  # exp(80) = 5.5e34 leaves float32 room for a sum over thousands of models


@dataclass(frozen=True)
class Variant:
    """One of the published forms of the method: the default clip ratio and the inter term.

    inter(task_vectors, u, spare, sums) -> [n, c] may overwrite u, spare [n, c] float32 and sums [2, n, c] float64.
    None: the `paper` variant, see `mergeline.balancing.softmax`.
    """

    clip_ratio: float
    inter: Inter | None


def scores(
    task_vectors: Tensor,
    low: Sequence[float],
    high: Sequence[float],
    inter: Inter,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Score b [n, c] of every entry: its own magnitude (intra, section 3) times its agreement with the others (inter).

    task_vectors: [n, c] float32. low, high: clip bounds [n]. Scores are compared within a row only, so a common
    factor is free: beyond 80 models it keeps exp(n u^2) inside float32. out: [n, c] float32 to write to.
    """
    models = len(task_vectors)
    out = torch.empty_like(task_vectors, memory_format=torch.contiguous_format) if out is None else out
    spans = widths(low, high)
    scratch, sums = buffers("scores", task_vectors, 2), buffers("scores", task_vectors, 2, torch.float64)
    for tau, b in pieces(task_vectors, out):
        u, spare = scratch[..., : tau.shape[1]]
        clip_magnitude(tau, low, high, out=u)
        for row, least, width in zip(u, low, spans, strict=True):
            row.sub_(least).div_(width)
        torch.mul(u, u, out=b).mul_(models).sub_(max(0, models - LARGEST_EXPONENT)).exp_()
        b.mul_(inter(tau, u, spare, sums[..., : tau.shape[1]]))
    return out


def clip_magnitude(task_vectors: Tensor, low: Sequence[float], high: Sequence[float], *, out: Tensor) -> Tensor:
    """|tau| clipped to its row's bounds: [n, c]. Row by row: a clamp by tensors costs five times one by numbers."""
    for row, least, most in zip(torch.abs(task_vectors, out=out), low, high, strict=True):
        row.clamp_(least, most)
    return out


def clip(task_vectors: Tensor, low: Sequence[float], high: Sequence[float], *, out: Tensor, spare: Tensor) -> Tensor:
    """t [n, c]: task vectors with their magnitude clipped, sign kept; sign(0) is 0. Overwrites out and spare [n, c]."""
    return clip_magnitude(task_vectors, low, high, out=out).mul_(torch.sign(task_vectors, out=spare))


def widths(low: Sequence[float], high: Sequence[float]) -> list[float]:
    """high - low in float32, infinite where they meet: what is divided by it becomes 0."""
    width = torch.tensor(high, dtype=torch.float32) - torch.tensor(low, dtype=torch.float32)
    return torch.where(width > 0, width, torch.inf).tolist()


def find_variant(name: str) -> Variant:
    """The variant of that name, or an InputError with the nearest name."""
    if name not in VARIANTS:
        raise InputError(f"PCB variant {name!r} does not exist{nearest(name, VARIANTS, listed=True)}")
    return VARIANTS[name]


def _sum_of_values(task_vectors: Tensor, u: Tensor, spare: Tensor, sums: Tensor) -> Tensor:
    """tanh(tau_i * sum_j tau_j): does this entry pull where the sum of all pulls?"""
    total = spare[0].copy_(sum_over_models(task_vectors, out=sums[:, 0]))
    return torch.mul(task_vectors, total, out=u).tanh_()


def _sum_of_magnitudes(task_vectors: Tensor, u: Tensor, spare: Tensor, sums: Tensor) -> Tensor:
    """tanh(tau_i * sum_j sign(tau_j) u_j): the same with every task vector on the scale [-1, 1]."""
    x = u.mul_(torch.sign(task_vectors, out=spare))
    total = spare[0].copy_(sum_over_models(x, out=sums[:, 0]))
    return torch.mul(task_vectors, total, out=u).tanh_()


def _pairs(task_vectors: Tensor, u: Tensor, spare: Tensor, sums: Tensor) -> Tensor:
    """sum_j tanh(x_i x_j), x = sign(tau) u; one tanh serves both rows. Like `paper`, free of tau's scale."""
    x = u.mul_(torch.sign(task_vectors, out=spare))
    total, agreement = sums[0].zero_(), sums[1, 0]
    for i in range(len(x)):
        for j in range(i, len(x)):
            agreement.copy_(torch.mul(x[i], x[j], out=spare[0]).tanh_())  # an addition of two types costs twice as much
            total[i] += agreement
            if j != i:
                total[j] += agreement
    return u.copy_(total)


VARIANTS: dict[str, Variant] = {
    "reference": Variant(clip_ratio=0.0001, inter=_sum_of_values),
    "nlp": Variant(clip_ratio=0.01, inter=_sum_of_values),
    "vision": Variant(clip_ratio=0.01, inter=_sum_of_magnitudes),
    "pairwise": Variant(clip_ratio=0.01, inter=_pairs),
    "paper": Variant(clip_ratio=0.0, inter=None),
}
