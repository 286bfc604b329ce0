"""Who won the competition of PCB-Merging: how many parameters each task kept and won, and with what coefficients."""

from collections.abc import Iterable, Sequence

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from mergeline.balancing.pcb import coefficients
from mergeline.balancing.pieces import pieces
from mergeline.balancing.statistics import PcbStatistics

BINS = 20
"""Equal bins of coefficients over (0, 1]."""


class Winners(BaseModel):
    """Counts over parameters. Of each task: kept, where its coefficient is above 0; won, where it is the largest (the
    first task of equals); histogram, how its kept coefficients spread over the bins. contested: kept by two tasks or
    more. unclaimed: kept by none, so that the base stays.
    """

    model_config = ConfigDict(frozen=True)

    parameters: int
    kept: tuple[int, ...]
    won: tuple[int, ...]
    histogram: tuple[tuple[int, ...], ...]
    contested: int
    unclaimed: int


def count_winners(chunks: Iterable[Tensor], statistics: PcbStatistics) -> Winners:
    """Count over the task vectors of one group, given as [n, c] float32 chunks; memory holds one chunk."""
    models = len(statistics.maximum)
    kept, won = torch.zeros(models, dtype=torch.long), torch.zeros(models, dtype=torch.long)
    histogram = torch.zeros(models, BINS, dtype=torch.long)
    parameters = contested = unclaimed = 0
    for chunk in chunks:
        for (shares,) in pieces(coefficients(chunk, statistics)):  # [n, p]
            present = shares > 0
            claims = present.sum(dim=0)
            kept += present.sum(dim=1)
            won += torch.bincount(shares.argmax(dim=0)[claims > 0], minlength=models)
            for row, own, counts in zip(shares, present, histogram, strict=True):
                bins = (row[own] * BINS).ceil().long().clamp(1, BINS) - 1
                counts += torch.bincount(bins, minlength=BINS)
            contested += int((claims > 1).sum())
            unclaimed += int((claims == 0).sum())
            parameters += shares.shape[1]
    return Winners(
        parameters=parameters,
        kept=tuple(kept.tolist()),
        won=tuple(won.tolist()),
        histogram=tuple(tuple(counts) for counts in histogram.tolist()),
        contested=contested,
        unclaimed=unclaimed,
    )


def all_winners(groups: Sequence[Winners]) -> Winners:
    """The counts of several groups of one merge as one; there must be at least one."""
    return Winners(
        parameters=sum(group.parameters for group in groups),
        kept=_sums([group.kept for group in groups]),
        won=_sums([group.won for group in groups]),
        histogram=tuple(_sums(rows) for rows in zip(*(group.histogram for group in groups), strict=True)),
        contested=sum(group.contested for group in groups),
        unclaimed=sum(group.unclaimed for group in groups),
    )


def _sums(rows: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*rows, strict=True)))
