"""A score beside that of the task's own model: how far it is off, and which share of it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot

from mergeline.evaluation.score import Score, mean_and_error


@dataclass(frozen=True)
class Relative:
    """change: score - own; normalised: score / own, or own / score where lower is better; None where that has no value.

    The standard errors are those of independent estimates (Miller 2024, arXiv:2411.00640, section 4.1; for the ratio
    the delta method). Both models answered the same examples, so the true errors are mostly smaller.
    """

    change: float
    change_error: float
    normalised: float | None
    normalised_error: float | None


def relative(score: Score, own: Score) -> Relative:
    """A score beside the own model's: s_d = sqrt(s_a^2 + s_b^2), s_r = sqrt(s_a^2 + (r s_b)^2) / b for r = a / b.

    Where lower is better, r = own / score: what keeps all of the own model is 1 by either measure. Numbers that may be
    negative (scores and losses of the user's own) have no ratio.
    """
    change, error = score.value - own.value, hypot(score.standard_error, own.standard_error)
    above, below = (own, score) if score.lower_is_better else (score, own)
    if below.value == 0 or score.measure in ("score", "loss"):
        return Relative(change, error, None, None)
    ratio = above.value / below.value
    return Relative(change, error, ratio, hypot(above.standard_error, ratio * below.standard_error) / below.value)


def mean_relative(found: Sequence[Relative]) -> Relative:
    """Mean over independent tasks, each of the same weight; no normalised mean where one task has none."""
    change, error = mean_and_error([one.change for one in found], [one.change_error for one in found])
    ratios = [(one.normalised, one.normalised_error) for one in found]
    known = [(value, off) for value, off in ratios if value is not None and off is not None]
    if len(known) < len(found):
        return Relative(change, error, None, None)
    return Relative(change, error, *mean_and_error([value for value, _ in known], [off for _, off in known]))
