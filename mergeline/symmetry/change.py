"""How much outputs change, relative to how much they vary: constants among them, however large, hide nothing."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1e-6
"""Outputs that are smaller throughout are taken for zero with rounding errors."""

OUTLIER = 10
"""Elements that vary so many times more than a quarter of all do are not typical: values that mask others."""


def relative_change(before: Tensor, after: Tensor, scale: Tensor) -> float:
    """Largest change of an element over its scale; infinite where a number became NaN or Inf, or was that before."""
    if not before.numel():
        return 0.0
    before, after = _wide(before), _wide(after)
    same = (before == after) | (before.isnan() & after.isnan())
    change = ((before - after).abs() / scale).masked_fill(same, 0.0)
    return float(change.nan_to_num(nan=torch.inf, posinf=torch.inf).max())


def scale_of(output: Tensor, other: Tensor) -> Tensor:
    """How much the elements of an output vary typically, from its values for two sets of parameters, float64.

    What hardly differs between them has no part in it, beyond its own rounding errors. Classes and truth values vary
    by one.
    """
    if not is_continuous(output):
        return torch.ones(output.shape, dtype=torch.float64, device=output.device)
    size = _wide(output).abs().nan_to_num(posinf=0.0)
    largest = float(size.max()) if output.numel() else 0.0
    noise = size.clamp(min=min(1.0, max(SMALLEST, largest))) * _precision(output)
    response = (_wide(output) - _wide(other)).abs()
    heard = response.isfinite() & (response > noise)
    own = size[heard & (size > noise)]  # the other values may be far larger
    return noise.clamp(min=min(_typical(response[heard]), _typical(own) if len(own) else torch.inf))


def _typical(values: Tensor) -> float:
    if not len(values):
        return 0.0
    quartile = float(values.kthvalue(len(values) // 4 + 1).values)
    return min(float(values.max()), OUTLIER * quartile)


def tells(output: Tensor) -> bool:
    """Whether an output differs from place to place, if it consists of classes or truth values."""
    return is_continuous(output) or output.numel() < 2 or len(output.unique()) > 1


def is_continuous(output: Tensor) -> bool:
    """Whether an output consists of real or complex numbers."""
    return output.is_floating_point() or output.is_complex()


def is_lost(output: Tensor, other: Tensor) -> bool:
    """Whether an output is NaN where other parameters give a number, or has no number at all."""
    numbers = output.isfinite()
    return bool((output.isnan() & other.isfinite()).any()) or bool(output.numel() and not numbers.any())


def is_unsteady(output: Tensor, other: Tensor) -> bool:
    """Whether the parameters decide which elements are infinite."""
    return bool((output.isfinite() != other.isfinite()).any())


def _wide(x: Tensor) -> Tensor:
    return x if x.is_complex() else x.double()


def _precision(x: Tensor) -> float:
    """Relative differences below this may be rounding errors."""
    return 1e-6 if torch.finfo(x.dtype).eps < 1e-12 else 1e-3
