"""The `paper` variant of PCB-Merging: the equations of arXiv 2410.02396, section 3, with their two softmaxes.

    b_intra,i = Softmax(N * Norm(tau_i * tau_i))              (1)
    b_inter,i = sum_j Softmax(Norm(tau_i * tau_j))            (2)   j = 1..N, i included
    b_i = b_intra,i * b_inter,i,  kept where b_i >= its value at the share 1 - r of the sorted row       (3)
    merged = sum_i b_i tau_i / sum_i b_i over what is kept                                                (4)

Read as the authors' programs use the words: Norm maps the row of d products to [0, 1] by its least and largest entry,
Softmax runs over the d parameters. The normaliser of a softmax differs from task to task, so it does not cancel in (4);
its factor d does, so both are held as softmax * d, whose mean is 1: float32 has room for that at any d.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from mergeline.balancing.competition import clip, widths
from mergeline.balancing.pieces import buffers, pieces

_COARSE, _FINE = 35, 70  # bits after the binary point of the two parts of an exact sum


@dataclass(frozen=True)
class Normalisers:
    """What Norm and Softmax need of whole rows: float32 values; one per pair i <= j, (0, 0), (0, 1) ... (1, 1) ...

    product_low, product_high: extremes of x_i x_j, x = tau over the power of two at its clip bound. log_inter: log of
    the mean of exp(Norm - 1). log_intra [n]: log of the mean of exp(N (Norm - 1)).
    """

    product_low: tuple[float, ...]
    product_high: tuple[float, ...]
    log_inter: tuple[float, ...]
    log_intra: tuple[float, ...]


def normalisers(
    chunks: Callable[[], Iterable[Tensor]], size: int, low: Sequence[float], high: Sequence[float]
) -> Normalisers:
    """The normalisers of n rows of `size` entries in two passes. chunks: of `pcb_statistics`; low, high: clip bounds.

    Extremes and exact sums depend on no order, so neither chunks nor threads show. A product that is the same
    everywhere has Norm 1: its softmax is uniform.
    """
    count = len(low) * (len(low) + 1) // 2
    least, most = [math.inf] * count, [-math.inf] * count
    for chunk in chunks():
        for x, product, _ in _scaled(chunk, low, high):
            for index, (i, j) in enumerate(_pairs(len(x))):
                smallest, largest = torch.mul(x[i], x[j], out=product).aminmax()
                least[index] = min(least[index], float(smallest))
                most[index] = max(most[index], float(largest))
    spans = widths(least, most)
    inter, intra = [0] * count, [0] * len(low)
    for chunk in chunks():
        for x, product, power in _scaled(chunk, low, high):
            for index, (i, j) in enumerate(_pairs(len(x))):
                exponent = torch.mul(x[i], x[j], out=product).sub_(most[index]).div_(spans[index])
                inter[index] += exact_sum(torch.exp(exponent, out=power))
                if i == j:
                    intra[i] += exact_sum(torch.mul(exponent, len(x), out=power).exp_())
    log_inter, log_intra = ([_log_of_mean(total, size) for total in totals] for totals in (inter, intra))
    return Normalisers(tuple(least), tuple(most), tuple(log_inter), tuple(log_intra))


def softmax_scores(
    task_vectors: Tensor, low: Sequence[float], high: Sequence[float], known: Normalisers, *, out: Tensor | None = None
) -> Tensor:
    """b [n, c] float32 of one chunk, times d^2. task_vectors: [n, c] float32; low, high: clip bounds [n]."""
    out = torch.empty_like(task_vectors, memory_format=torch.contiguous_format) if out is None else out
    spans = widths(known.product_low, known.product_high)
    sums = buffers("softmax", task_vectors, 2, torch.float64)
    for (x, product, power), (target,) in zip(_scaled(task_vectors, low, high), pieces(out), strict=True):
        inter, agreement = sums[0, :, : x.shape[1]].zero_(), sums[1, 0, : x.shape[1]]
        for index, (i, j) in enumerate(_pairs(len(x))):
            exponent = torch.mul(x[i], x[j], out=product).sub_(known.product_high[index]).div_(spans[index])
            if i == j:
                torch.mul(exponent, len(x), out=target[i]).sub_(known.log_intra[i]).exp_()
            agreement.copy_(torch.sub(exponent, known.log_inter[index], out=power).exp_())
            inter[i] += agreement
            if i != j:
                inter[j] += agreement
        target.mul_(x.copy_(inter))
    return out


def exact_sum(values: Tensor) -> int:
    """The sum of at most 2^18 float32 values in [0, 1], in units of 2^-70: the same whatever their order.

    Adding and subtracting a large constant cuts a value at a fixed bit, and float64 holds sums of such parts exactly.
    """
    value = values.double()
    coarse = (value + 1.5 * 2.0 ** (52 - _COARSE)).sub_(1.5 * 2.0 ** (52 - _COARSE))
    fine = value.sub_(coarse).add_(1.5 * 2.0 ** (52 - _FINE)).sub_(1.5 * 2.0 ** (52 - _FINE))
    return (int(float(coarse.sum()) * 2**_COARSE) << (_FINE - _COARSE)) + int(float(fine.sum()) * 2**_FINE)


def _scaled(
    task_vectors: Tensor, low: Sequence[float], high: Sequence[float]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Pieces x [n, c] of the clipped rows, each over a power of two so that no product leaves float32; two buffers [c].

    The power is exact, so it changes nothing in Norm.
    """
    powers = [2.0 ** max(-126, math.frexp(bound)[1] - 1) for bound in high]
    rows, spare = buffers("softmax", task_vectors, 2)
    row = torch.empty_like(rows[0])
    for (tau,) in pieces(task_vectors):
        columns = tau.shape[1]
        x = clip(tau, low, high, out=rows[:, :columns], spare=spare[:, :columns])
        for entries, power in zip(x, powers, strict=True):
            entries.div_(power)
        yield x, spare[0, :columns], row[:columns]


def _pairs(models: int) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in range(models) for j in range(i, models))


def _log_of_mean(total: int, size: int) -> float:
    return float(torch.tensor(math.log(Fraction(total, size << _FINE)), dtype=torch.float32))
