"""A measured accuracy with the standard error that its number of examples allows."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import stdev
from typing import Literal

MetricName = Literal["accuracy", "balanced_accuracy", "f1"]
"""What a classification task may be measured by."""


@dataclass(frozen=True)
class Score:
    """A share of right answers in [0, 1], its standard error, and how many examples were asked."""

    value: float
    standard_error: float
    count: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} ± {100 * self.standard_error:.1f}"


def mean_and_error(values: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """Mean of independent estimates, each of the same weight; standard errors add in squares."""
    return sum(values) / len(values), sqrt(sum(error**2 for error in errors)) / len(values)


def over_repeats(scores: Sequence[Score]) -> Score:
    """Mean over repeats with the standard error that their spread gives; of a single one, it itself."""
    if len(scores) == 1:
        return scores[0]
    values = [score.value for score in scores]
    return Score(sum(values) / len(values), stdev(values) / sqrt(len(values)), sum(score.count for score in scores))
