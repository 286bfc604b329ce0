"""PCB-Merging of task vectors: clip, compete, drop, and take the weighted mean of what is left."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergeline.balancing.competition import clip_magnitude, find_variant, scores
from mergeline.balancing.statistics import PcbStatistics, pcb_statistics
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
    per task. variant: "reference", "nlp", "vision" or "pairwise". scales: lambda; one number multiplies the merged task
    vector, n numbers multiply each task inside the weighted mean; None is 1. clip_ratio: None takes the variant's.
    InputError for wrong shapes, NaN or infinity, and values out of range; a warning names a task that is left out.
    """
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
        share.copy_(coefficients(chunk, statistics))
        target.copy_(outer * weighted_mean(chunk, share, statistics, inner))
    bounds = [statistics.column(name, task_vectors) for name in ("clip_low", "clip_high")]
    return PcbResult(merged, kept, torch.stack(bounds, dim=1))


def merged_task_vector(
    task_vectors: Tensor, statistics: PcbStatistics, scales: Sequence[float] | None = None
) -> Tensor:
    """The merged task vector [c] of one chunk [n, c] float32, given the statistics of the whole."""
    return weighted_mean(task_vectors, coefficients(task_vectors, statistics), statistics, scales)


def coefficients(task_vectors: Tensor, statistics: PcbStatistics) -> Tensor:
    """s [n, c] in [0, 1] of one chunk: the score above the threshold, relative to the best score of the task.

    s = (max(b, q) - q) / (M - q): everything up to the threshold, ties included, becomes 0.
    """
    low, high, threshold, maximum = _columns(task_vectors, statistics)
    spread = maximum - threshold
    spread = torch.where(spread > 0, spread, torch.inf)  # a task that is left out gets 0
    b = scores(task_vectors, low, high, find_variant(statistics.variant).inter)
    return b.clamp_(min=threshold[:, None]).sub_(threshold[:, None]).div_(spread[:, None])


def weighted_mean(
    task_vectors: Tensor, shares: Tensor, statistics: PcbStatistics, scales: Sequence[float] | None = None
) -> Tensor:
    """sum_i lambda_i t_i s_i / max(sum_i s_i, 1e-12) of one chunk: [c] float32.

    t: task vectors [n, c] clipped between their bounds, sign kept. shares: s [n, c]. scales: lambda_i, None is 1.
    The products are exact in float64, so where one task alone survives the result is its clipped entry to the bit.
    """
    if scales is not None and len(scales) != len(task_vectors):
        raise InputError(f"PCB: there are {len(scales)} scales for {len(task_vectors)} task models.")
    low, high, _, _ = _columns(task_vectors, statistics)
    clipped = clip_magnitude(task_vectors, low, high).mul_(task_vectors.sign())
    weighted = torch.zeros(task_vectors.shape[1], dtype=torch.float64, device=task_vectors.device)
    total = torch.zeros_like(weighted)
    for index, (vector, share) in enumerate(zip(clipped, shares.double(), strict=True)):
        total += share
        share *= vector.double()
        weighted += share if scales is None else share.mul_(float(scales[index]))
    return weighted.div_(total.clamp_(min=1e-12)).float()


def _columns(task_vectors: Tensor, statistics: PcbStatistics) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four statistics as tensors [n], checked against the number of task vectors."""
    if len(statistics.maximum) != len(task_vectors):
        raise InputError(f"PCB statistics are of {len(statistics.maximum)} task models, not {len(task_vectors)}.")
    low, high, threshold, maximum = (
        statistics.column(name, task_vectors) for name in ("clip_low", "clip_high", "threshold", "maximum")
    )
    return low, high, threshold, maximum


def _scales(scales: float | Sequence[float] | Tensor | None, models: int) -> tuple[Sequence[float] | None, float]:
    """(lambda per task inside the mean, lambda outside)."""
    values = torch.as_tensor(1.0 if scales is None else scales, dtype=torch.float64)
    if not torch.isfinite(values).all() or values.dim() > 1 or (values.dim() == 1 and len(values) != models):
        raise InputError(f"scales must be one finite number or {models} of them (one per task), not {scales}.")
    return (None, float(values)) if values.dim() == 0 else (values.tolist(), 1.0)
