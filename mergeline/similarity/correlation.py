"""Pearson correlation between units, from their covariance."""

from torch import Tensor

SMALLEST_SCALE = 1e-7
"""Products of two standard deviations below this count as this: dead units correlate with nothing."""


def correlation(covariance: Tensor, deviation_rows: Tensor, deviation_columns: Tensor) -> Tensor:
    """Correlation of each row unit with each column unit.

    covariance [a, b], deviations [a] and [b]: population covariance and standard deviations. Returns [a, b].
    """
    scale = deviation_rows[:, None] * deviation_columns[None, :]
    return covariance / scale.clamp_min(SMALLEST_SCALE)
