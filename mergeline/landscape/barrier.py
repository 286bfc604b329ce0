"""The barrier on a line between two models (Frankle et al. 2020; Entezari et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict


class Barrier(BaseModel):
    """How far a line rises above the straight one between its ends, and at which share of the end (0: it does not)."""

    model_config = ConfigDict(frozen=True)

    height: float
    at: float


def barrier(shares: Sequence[float], losses: Sequence[float]) -> Barrier:
    """max over a of L((1 - a) start + a end) - [(1 - a) L(start) + a L(end)], over the points that were measured.

    shares: the values of a, from 0 to 1; losses: L at each. It is 0 where no point lies above the straight line.
    """
    first, last = losses[0], losses[-1]
    rises = [loss - ((1 - share) * first + share * last) for share, loss in zip(shares, losses, strict=True)]
    rises[0] = rises[-1] = 0.0  # by definition, whatever rounding says
    highest = max(range(len(rises)), key=lambda place: rises[place])
    return Barrier(height=rises[highest], at=shares[highest] if rises[highest] > 0 else 0.0)
