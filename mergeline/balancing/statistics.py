"""What PCB-Merging must know of whole task vectors before it can merge a chunk: four numbers per task."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from mergeline.balancing.competition import find_variant, scores
from mergeline.balancing.order_statistics import order_statistics
from mergeline.errors import InputError


@dataclass(frozen=True)
class PcbStatistics:
    """Order statistics of n task vectors: float32 values held as Python floats, so JSON keeps their bits.

    clip_low, clip_high: bounds of |tau|. threshold: the score q up to which entries are dropped. maximum: the largest
    score; a task whose maximum equals its threshold takes no part in the merge.
    """

    variant: str
    keep_ratio: float
    clip_ratio: float
    clip_low: tuple[float, ...]
    clip_high: tuple[float, ...]
    threshold: tuple[float, ...]
    maximum: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary; `from_dict` gives back an equal object."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PcbStatistics":
        """Inverse of `to_dict`; InputError where a field is missing, unknown, of another length or not finite."""
        names = [field.name for field in fields(cls)]
        if sorted(values) != sorted(names):
            raise InputError(
                f"PCB statistics hold the fields {sorted(values)}, not {sorted(names)}; compute them again."
            )
        per_task = {name: values[name] for name in ("clip_low", "clip_high", "threshold", "maximum")}
        tasks = len(values["maximum"])
        for name, row in per_task.items():
            if len(row) != tasks or not all(isinstance(number, float) and math.isfinite(number) for number in row):
                raise InputError(f"PCB statistics: {name} is not one finite number per task; compute them again.")
        return cls(**{**values, **{name: tuple(row) for name, row in per_task.items()}})

    def column(self, name: str, like: Tensor) -> Tensor:
        """One field as a float32 tensor [n] on the device of `like`."""
        return torch.tensor(getattr(self, name), dtype=torch.float32, device=like.device)


def pcb_statistics(
    chunks: Callable[[], Iterable[Tensor]],
    size: int,
    keep_ratio: float,
    *,
    variant: str = "reference",
    clip_ratio: float | None = None,
) -> PcbStatistics:
    """Clip bounds, threshold and maximum of every task vector (arXiv 2410.02396, section 3; authors' programs).

    chunks: called twice, gives the [n, c] float32 pieces of the n task vectors of `size` finite entries in order; how
    they are cut changes no bit. clip_ratio: share clipped at either end; None takes the variant's.
    InputError for ratios out of range or a keep ratio that keeps nothing. Task vectors without a competition (all zero,
    or every score equal) are excluded with a warning.
    """
    kind = find_variant(variant)
    ratio = kind.clip_ratio if clip_ratio is None else float(clip_ratio)
    low_rank, high_rank, threshold_rank = _ranks(size, float(keep_ratio), ratio)

    bounds = order_statistics((chunk.abs() for chunk in chunks()), size, [low_rank, high_rank])
    low, high = bounds.unbind(dim=1)
    competition = (scores(chunk, low, high, kind.inter) for chunk in chunks())
    threshold, maximum = order_statistics(competition, size, [threshold_rank, size - 1]).unbind(dim=1)
    if not torch.isfinite(maximum).all():
        raise InputError("PCB: the task vectors are too large for float32 arithmetic; scale the checkpoints down.")

    maximum = torch.where(high > low, maximum, threshold)
    for index in torch.nonzero(maximum <= threshold).flatten().tolist():
        warnings.warn(
            f"PCB: task vector {index} is left out of the merge: its scores at or above the threshold are all equal "
            f"(it is zero or constant nearly everywhere, or the others cancel it).",
            stacklevel=2,
        )
    return PcbStatistics(
        variant, float(keep_ratio), ratio, *(tuple(column.tolist()) for column in (low, high, threshold, maximum))
    )


def _ranks(size: int, keep_ratio: float, clip_ratio: float) -> tuple[int, int, int]:
    """0-based ranks of the clip bounds and the threshold, with the authors' float products and truncation."""
    if not 0 < keep_ratio <= 1:
        raise InputError(f"PCB: keep_ratio {keep_ratio} is not in (0, 1].")
    if not 0 <= clip_ratio < 0.5:
        raise InputError(f"PCB: clip_ratio {clip_ratio} is not in [0, 0.5).")
    low, high, threshold = int(size * clip_ratio), int(size * (1 - clip_ratio) - 1), int(size * (1 - keep_ratio))
    if threshold >= size - 1:  # the entry at the threshold is dropped too
        raise InputError(f"PCB: keep_ratio {keep_ratio} keeps none of {size} parameters; raise it.")
    if high < low:
        raise InputError(f"PCB: clip_ratio {clip_ratio} leaves nothing of {size} parameters.")
    return low, high, threshold
