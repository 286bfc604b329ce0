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


def gram(rows: Tensor) -> Tensor:
    """rows @ rows.T, [a, n] -> [a, a]."""
    products = rows.new_zeros(len(rows), len(rows))
    add_products(products, rows)
    return products


def add_products(products: Tensor, rows: Tensor, scale: float = 1.0, parts: int = 4) -> None:
    """products += scale * rows @ rows.T; of what is equal on both sides of the diagonal, most is computed once."""
    step = -(-len(rows) // parts)
    for start in range(0, len(rows), step):
        here, later = slice(start, start + step), slice(start + step, None)
        products[here, start:].addmm_(rows[here], rows[start:].T, alpha=scale)
        products[later, here] = products[here, later].T
