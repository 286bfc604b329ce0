"""A measured score with the standard error that its number of examples allows."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import stdev
from typing import Annotated, Literal

from pydantic import Field

from mergeline.errors import InputError

MetricName = Literal["accuracy", "balanced_accuracy", "f1", "perplexity", "exact_match", "score", "loss"]
"""What a task may be measured by; which of them fit depends on its kind (`mergeline.evaluation.kinds`)."""

Measure = Literal["share", "perplexity", "score", "loss"]
"""What a number is: a share of right answers in [0, 1], a perplexity, or a number of the user's own."""

LOWER_IS_BETTER: tuple[Measure, ...] = ("perplexity", "loss")


@dataclass(frozen=True)
class Score:
    """A measured number, its standard error, and how many examples were asked (of a perplexity: how many tokens)."""

    value: float
    standard_error: float
    count: int
    measure: Annotated[Measure, Field(exclude_if=lambda measure: measure == "share")] = "share"

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller number is the better one."""
        return self.measure in LOWER_IS_BETTER

    @property
    def goodness(self) -> float:
        """The number to rank by: it grows with how good the score is."""
        return -self.value if self.lower_is_better else self.value

    @property
    def unit(self) -> str:
        """What stands behind the number in a sentence."""
        return " %" if self.measure == "share" else ""

    @property
    def scale(self) -> float:
        """What the value is multiplied by to be shown."""
        return 100.0 if self.measure == "share" else 1.0

    @property
    def digits(self) -> int:
        """How many decimals are shown of it, and of its differences."""
        return 1 if self.measure == "share" else 3

    def __str__(self) -> str:
        return f"{self.scale * self.value:.{self.digits}f} ± {self.scale * self.standard_error:.{self.digits}f}"


def mean_and_error(values: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """Mean of independent estimates, each of the same weight; standard errors add in squares."""
    return sum(values) / len(values), sqrt(sum(error**2 for error in errors)) / len(values)


def over_repeats(scores: Sequence[Score]) -> Score:
    """Mean over repeats with the standard error that their spread gives; of a single one, it itself."""
    if len(scores) == 1:
        return scores[0]
    values = [score.value for score in scores]
    error = stdev(values) / sqrt(len(values))
    return Score(sum(values) / len(values), error, sum(score.count for score in scores), scores[0].measure)


def mean_score(scores: Sequence[Score]) -> Score:
    """Mean over independent tasks, each of the same weight; standard errors add in squares.

    Raises InputError where the scores are of several measures: a share and a perplexity have no mean.
    """
    if len(measures := {score.measure for score in scores}) > 1:
        raise InputError(f"tasks measured by {' and '.join(sorted(measures))} have no common mean")
    value, error = mean_and_error([score.value for score in scores], [score.standard_error for score in scores])
    return Score(value, error, sum(score.count for score in scores), scores[0].measure)
