"""A measured accuracy with the standard error that its number of examples allows."""

from dataclasses import dataclass
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
