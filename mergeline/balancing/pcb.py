"""PCB-Merging of task vectors: clip, compete, drop, and take the weighted mean of what is left."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergeline.balancing.competition import clip, find_variant, scores, widths
from mergeline.balancing.pieces import buffers, pieces
from mergeline.balancing.softmax import softmax_scores
from mergeline.balancing.statistics import PER_TASK, PcbStatistics, pcb_statistics
from mergeline.errors import InputError

CHUNK = 1 << 17  # columns at a time: few enough for the cache, enough to keep several threads busy


@dataclass(frozen=True)
class PcbResult:
    """merged: task vector [d]. coefficients: s [n, d] in [0, 1]. clip_bounds: of |tau| [n, 2]. All float32."""

    merged: Tensor
    coefficients: Tensor
    clip_bounds: Tensor


def pcb_merge(
    task_vectors: Tensor,
    keep_ratio: float,
    *,
    variant: str = "reference",
    scales: float | Sequence[float] | Tensor | None = None,
    clip_ratio: float | None = None,
) -> PcbResult:
    """Merge n task vectors into one (PCB-Merging, arXiv 2410.02396).

    task_vectors: [n, d] of any floating dtype, computed in float32. keep_ratio: share of entries in (0, 1] that survive
    per task. variant: "reference", "nlp", "vision", "pairwise" or "paper". scales: lambda; one number multiplies the
    merged task vector, n numbers multiply each task inside the weighted mean; None is 1. clip_ratio: None takes the
    variant's.
    InputError for wrong shapes, NaN or infinity, and values out of range; a warning names a task that is left out.
    """
    if not isinstance(task_vectors, Tensor):
        raise InputError(f"task_vectors is a {type(task_vectors).__name__}, not a tensor [tasks, parameters].")
    if task_vectors.dim() != 2 or not task_vectors.is_floating_point() or not task_vectors.numel():
        raise InputError(
            f"task_vectors is a {task_vectors.dtype} tensor of shape {list(task_vectors.shape)}; "
            f"it must be a floating tensor [tasks, parameters]."
        )
    for index, row in enumerate(task_vectors.detach()):
        if not torch.isfinite(torch.stack(row.aminmax())).all():
            raise InputError(f"task_vectors[{index}] holds NaN or infinity.")

    def chunks() -> Iterator[Tensor]:
        return (part.float().contiguous() for part in task_vectors.detach().split(CHUNK, dim=1))

    models, size = task_vectors.shape
    inner, outer = _scales(scales, models)
    statistics = pcb_statistics(chunks, size, keep_ratio, variant=variant, clip_ratio=clip_ratio)
    merged = torch.empty(size, device=task_vectors.device)
    kept = torch.empty(models, size, device=task_vectors.device)
    for chunk, target, share in zip(chunks(), merged.split(CHUNK), kept.split(CHUNK, dim=1), strict=True):
        coefficients(chunk, statistics, out=share)
        target.copy_(outer * weighted_mean(chunk, share, statistics, inner))
    bounds = [statistics.column(name, task_vectors) for name in ("clip_low", "clip_high")]
    return PcbResult(merged, kept, torch.stack(bounds, dim=1))


def merged_task_vector(
    task_vectors: Tensor, statistics: PcbStatistics, scales: Sequence[float] | None = None
) -> Tensor:
    """The merged task vector [c] of one chunk [n, c] float32, given the statistics of the whole."""
    merged = torch.empty(task_vectors.shape[1], device=task_vectors.device)
    for tau, target in pieces(task_vectors, merged):
        shares = buffers("shares", tau, 1)[0, :, : tau.shape[1]]
        target.copy_(weighted_mean(tau, coefficients(tau, statistics, out=shares), statistics, scales))
    return merged


def coefficients(task_vectors: Tensor, statistics: PcbStatistics, *, out: Tensor | None = None) -> Tensor:
    """s [n, c] in [0, 1] of one chunk: the score above the threshold, relative to the best score of the task.

    s = (max(b, q) - q) / (M - q): everything up to the threshold, ties included, becomes 0. Variant `paper`:
    s = b where b >= q, else 0, relative to the best score of all tasks. out: [n, c] float32 to write to.
    """
    _check_models(task_vectors, statistics)
    low, high, threshold, maximum = (getattr(statistics, name) for name in PER_TASK)
    kind = find_variant(statistics.variant)
    if kind.inter is None:
        return _softmax_coefficients(task_vectors, statistics, out)
    b = scores(task_vectors, low, high, kind.inter, out=out)
    spread = widths(threshold, maximum)  # infinite for a task that is left out: it gets 0
    for (piece,) in pieces(b):
        for row, q, width in zip(piece, threshold, spread, strict=True):
            row.clamp_(min=q).sub_(q).div_(width)
    return b


def _softmax_coefficients(task_vectors: Tensor, statistics: PcbStatistics, out: Tensor | None) -> Tensor:
    assert statistics.normalisers
    low, high, threshold, maximum = (getattr(statistics, name) for name in PER_TASK)
    b = softmax_scores(task_vectors, low, high, statistics.normalisers, out=out)
    best = max(*maximum, torch.finfo(torch.float32).tiny)
    for (piece,) in pieces(b):
        for row, q, most in zip(piece, threshold, maximum, strict=True):
            row.mul_(row >= (q if q <= most else math.inf)).div_(best)
    return b


def weighted_mean(
    task_vectors: Tensor, shares: Tensor, statistics: PcbStatistics, scales: Sequence[float] | None = None
) -> Tensor:
    """sum_i lambda_i t_i s_i / max(sum_i s_i, 1e-12) of one chunk: [c] float32.

    t: task vectors [n, c] clipped between their bounds, sign kept. shares: s [n, c]. scales: lambda_i, None is 1.
    The products are exact in float64, so where one task alone survives the result is its clipped entry to the bit.
    Variant `paper` has no floor of 1e-12.
    """
    if scales is not None and len(scales) != len(task_vectors):
        raise InputError(f"PCB: there are {len(scales)} scales for {len(task_vectors)} task models.")
    merged = torch.empty(task_vectors.shape[1], device=task_vectors.device)
    for tau, share, target in pieces(task_vectors, shares, merged):
        products, total = _products(tau, share, statistics)
        if scales is not None:
            for product, scale in zip(products, scales, strict=True):
                product.mul_(float(scale))
        target.copy_(_sum_of_rows(products).div_(total))
    return merged


def weighted_directions(task_vectors: Tensor, statistics: PcbStatistics) -> Tensor:
    """W [n, c] float32 of one chunk: row i is t_i s_i / max(sum_i s_i, 1e-12).

    For a search of lambda: sum_i lambda_i W_i is what `merged_task_vector` gives for these scales, up to one rounding
    of each term to float32 (2^-24 of sum_i |lambda_i W_i|); bit for bit where one task alone survives and lambda is 1.
    """
    directions = torch.empty_like(task_vectors, memory_format=torch.contiguous_format)
    for tau, target in pieces(task_vectors, directions):
        shares = buffers("shares", tau, 1)[0, :, : tau.shape[1]]
        products, total = _products(tau, coefficients(tau, statistics, out=shares), statistics)
        target.copy_(products.div_(total))
    return directions


def _products(task_vectors: Tensor, shares: Tensor, statistics: PcbStatistics) -> tuple[Tensor, Tensor]:
    """t_i s_i [n, p] and max(sum_i s_i, 1e-12) [p] of one piece: float64, in buffers that the next piece takes."""
    _check_models(task_vectors, statistics)
    floor = torch.finfo(torch.float64).tiny if statistics.normalisers else 1e-12
    t, spare = buffers("products", task_vectors, 2)[..., : task_vectors.shape[1]]
    products, sums = buffers("products", task_vectors, 2, torch.float64)[..., : task_vectors.shape[1]]
    clip(task_vectors, statistics.clip_low, statistics.clip_high, out=t, spare=spare)
    products.copy_(t).mul_(sums.copy_(shares))
    return products, _sum_of_rows(sums).clamp_(min=floor)


def _sum_of_rows(rows: Tensor) -> Tensor:
    """[n, p] -> [p], one row after the other, in place of the first; -0 becomes 0."""
    total = rows[0].add_(0.0)
    for row in rows[1:]:
        total += row
    return total


def _check_models(task_vectors: Tensor, statistics: PcbStatistics) -> None:
    if len(statistics.maximum) != len(task_vectors):
        raise InputError(f"PCB statistics are of {len(statistics.maximum)} task models, not {len(task_vectors)}.")


def _scales(scales: float | Sequence[float] | Tensor | None, models: int) -> tuple[Sequence[float] | None, float]:
    """(lambda per task inside the mean, lambda outside)."""
    values = torch.as_tensor(1.0 if scales is None else scales, dtype=torch.float64)
    if not torch.isfinite(values).all() or values.dim() > 1 or (values.dim() == 1 and len(values) != models):
        raise InputError(f"scales must be one finite number or {models} of them (one per task), not {scales}.")
    return (None, float(values)) if values.dim() == 0 else (values.tolist(), 1.0)
