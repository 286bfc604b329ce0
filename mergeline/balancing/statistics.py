"""What PCB-Merging must know of whole task vectors before it can merge a chunk: a few numbers per task."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mergeline.balancing.competition import find_variant, scores
from mergeline.balancing.order_statistics import order_statistics, sample_columns
from mergeline.balancing.softmax import Normalisers, normalisers, softmax_scores
from mergeline.errors import InputError

PER_TASK = ("clip_low", "clip_high", "threshold", "maximum")


@dataclass(frozen=True)
class PcbStatistics:
    """Order statistics of n task vectors: float32 values held as Python floats, so JSON keeps their bits.

    clip_low, clip_high: bounds of |tau|. threshold: the score q at which entries are dropped. maximum: the largest
    score; a task whose maximum is not above its threshold takes no part in the merge. normalisers: of the variant
    `paper` alone, which keeps what ties with the threshold; there a maximum of -1 marks a task that takes no part.
    """

    variant: str
    keep_ratio: float
    clip_ratio: float
    clip_low: tuple[float, ...]
    clip_high: tuple[float, ...]
    threshold: tuple[float, ...]
    maximum: tuple[float, ...]
    normalisers: Normalisers | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary of kilobytes; `from_dict` gives back an equal object."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        if self.normalisers:
            values["normalisers"] = _listed(values["normalisers"])
        return _listed(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PcbStatistics":
        """Inverse of `to_dict`; InputError where a field is missing, unknown, of another length or not finite."""
        given = dict(values)
        extra = given.pop("normalisers", None) if given.get("variant") == "paper" else None
        names = [field.name for field in fields(cls) if field.name != "normalisers"]
        _check_names(given, names, "PCB statistics")
        tasks = len(given["maximum"])
        for name in PER_TASK:
            given[name] = _numbers(given[name], name, tasks, "task")
        if given["variant"] == "paper":
            lengths = {field.name: tasks * (tasks + 1) // 2 for field in fields(Normalisers)} | {"log_intra": tasks}
            _check_names(extra or {}, list(lengths), "PCB statistics of variant paper: normalisers")
            rows = {name: _numbers((extra or {})[name], name, length, "pair") for name, length in lengths.items()}
            given["normalisers"] = Normalisers(**rows)
        return cls(**given)

    def column(self, name: str, like: Tensor) -> Tensor:
        """One field as a float32 tensor [n] on the device of `like`."""
        return torch.tensor(getattr(self, name), dtype=torch.float32, device=like.device)

    def left_out(self) -> list[int]:
        """The tasks that take no part in the merge."""
        ties_are_kept = self.normalisers is not None
        pairs = enumerate(zip(self.maximum, self.threshold, strict=True))
        return [index for index, (best, q) in pairs if best < q or (best == q and not ties_are_kept)]


def pcb_statistics(
    chunks: Callable[[], Iterable[Tensor]],
    size: int,
    keep_ratio: float,
    *,
    variant: str = "reference",
    clip_ratio: float | None = None,
    whole: bool = True,
) -> PcbStatistics:
    """Clip bounds, threshold and maximum of every task vector (arXiv 2410.02396, section 3; authors' programs).

    chunks: called three times or more, gives the [n, c] float32 pieces of the n task vectors of `size` finite entries
    in order; how they are cut changes no bit. clip_ratio: share clipped at either end; None takes the variant's.
    InputError for ratios out of range or a keep ratio that keeps nothing. Task vectors without a competition (all zero,
    or every score equal) are excluded with a warning.

    whole: False for one group of a larger model (a layer, a tensor), where nothing is refused for being small: in a
    group too small for its ratios nothing is clipped and every task that is not zero keeps its strongest entry (those
    that tie for it, too), so one of a single entry becomes the mean. An all-zero task is excluded without a warning: a
    tensor that a task left as it was is nothing unusual.
    """
    kind = find_variant(variant)
    ratio = kind.clip_ratio if clip_ratio is None else float(clip_ratio)
    ranks = _ranks(size, float(keep_ratio), ratio, ties_are_kept=kind.inter is None, whole=whole)
    sample = sample_columns(chunks, size)
    if sample.shape[1] == size:
        held = sample  # the rows fit: what follows reads them here
        chunks = lambda: [held]  # noqa: E731
    wanted = [ranks.low, ranks.high, size - 1]
    low, high, largest = order_statistics(_mapped(chunks, torch.abs), size, wanted, sample=sample.abs()).T.tolist()
    _refuse_overflow(largest)
    known = None
    if kind.inter is None:
        known = normalisers(chunks, size, low, high)
        competition: Callable[..., Tensor] = partial(softmax_scores, low=low, high=high, known=known)
    else:
        competition = partial(scores, low=low, high=high, inter=kind.inter)
    wanted = [ranks.threshold, size - 1]
    found = order_statistics(_mapped(chunks, competition), size, wanted, sample=competition(sample))
    threshold, maximum = found.unbind(dim=1)
    _refuse_overflow(maximum.tolist())

    absent = torch.tensor(largest) <= 0 if ranks.small else torch.tensor(high) <= torch.tensor(low)
    maximum = torch.where(absent.to(maximum.device), -1.0 if known else threshold, maximum)
    if ranks.small and not known:  # a threshold just under the strongest entry keeps it, and nothing else
        under = torch.nextafter(maximum, torch.full_like(maximum, -torch.inf))
        threshold = torch.where(~absent.to(maximum.device) & (maximum <= threshold), under, threshold)
    statistics = PcbStatistics(
        variant,
        float(keep_ratio),
        ratio,
        clip_low=tuple(low),
        clip_high=tuple(high),
        threshold=tuple(threshold.tolist()),
        maximum=tuple(maximum.tolist()),
        normalisers=known,
    )
    for index in statistics.left_out():
        if whole or largest[index] > 0:
            _warn_of_left_out(index, size)
    return statistics


@dataclass(frozen=True)
class _Ranks:
    """0-based ranks of the clip bounds and the threshold. small: the group is too small for its ratios."""

    low: int
    high: int
    threshold: int
    small: bool = False


def _ranks(size: int, keep_ratio: float, clip_ratio: float, *, ties_are_kept: bool, whole: bool) -> _Ranks:
    """The authors' float products and truncation; InputError where they leave nothing of a whole model."""
    if not 0 < keep_ratio <= 1:
        raise InputError(f"PCB: keep_ratio {keep_ratio} is not in (0, 1].")
    if not 0 <= clip_ratio < 0.5:
        raise InputError(f"PCB: clip_ratio {clip_ratio} is not in [0, 0.5).")
    low, high, threshold = int(size * clip_ratio), int(size * (1 - clip_ratio) - 1), int(size * (1 - keep_ratio))
    last = size - 1 if ties_are_kept else size - 2  # elsewhere the entry at the threshold is dropped too
    if threshold <= last and high >= low + (not whole):
        return _Ranks(low, high, threshold)
    if not whole:
        return _Ranks(0, size - 1, max(0, min(threshold, last)), small=True)
    if threshold > last:
        raise InputError(f"PCB: keep_ratio {keep_ratio} keeps none of {size} parameters; raise it.")
    raise InputError(f"PCB: clip_ratio {clip_ratio} leaves nothing of {size} parameters.")


def _mapped(chunks: Callable[[], Iterable[Tensor]], function: Callable[..., Tensor]) -> Callable[[], Iterator[Tensor]]:
    """The chunks after `function(chunk, out=...)`, all in one buffer."""

    def results() -> Iterator[Tensor]:
        room = torch.empty(0)
        for chunk in chunks():
            if room.numel() < chunk.numel():
                room = torch.empty(chunk.numel(), device=chunk.device)
            yield function(chunk, out=room[: chunk.numel()].view(chunk.shape))

    return results


def _refuse_overflow(values: Iterable[float]) -> None:
    if not all(map(math.isfinite, values)):
        raise InputError("PCB: the task vectors are too large for float32 arithmetic; scale the checkpoints down.")


def _warn_of_left_out(index: int, size: int) -> None:
    warnings.warn(
        f"PCB: task vector {index} is left out of the merge of {size} parameters: its scores at or above the threshold "
        f"are all equal (it is zero or constant nearly everywhere, or the others cancel it).",
        stacklevel=3,
    )


def _listed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _check_names(values: Mapping[str, Any], names: list[str], what: str) -> None:
    if sorted(values) != sorted(names):
        raise InputError(f"{what} hold the fields {sorted(values)}, not {sorted(names)}; compute them again.")


def _numbers(row: Any, name: str, length: int, one: str) -> tuple[float, ...]:
    if len(row) != length or not all(isinstance(number, float) and math.isfinite(number) for number in row):
        raise InputError(f"PCB statistics: {name} is not one finite number per {one}; compute them again.")
    return tuple(row)
