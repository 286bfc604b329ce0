"""The kinds of steps that random programs are made of.

A step is made for one or two values [n, ...] at hand; it is a function of the program's parameters and those values,
or None where the values do not suit it. What it draws at random, it draws when it is made.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Step = Callable[..., Tensor]
LETTERS = "abcdef"
LARGEST = 64  # elements of a value, for each sample


class Maker:
    """Draws at random, and keeps the shapes of the parameters that steps ask for."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def parameter(self, *shape: int) -> str:
        """Name of a new parameter."""
        name = f"p{len(self.shapes)}"
        self.shapes[name] = shape
        return name

    def size(self) -> int:
        return self.random.choice([2, 3, 4, 4, 6])

    def axis(self, x: Tensor) -> int:
        """Any axis but the first, which is the batch."""
        return self.random.randrange(1, x.ndim)


UNARY: dict[str, tuple[Callable[[Maker, Tensor], Step | None], int]] = {}
BINARY: dict[str, tuple[Callable[[Maker, Tensor, Tensor], Step | None], int]] = {}


def unary(weight: int = 1) -> Callable[[Any], Any]:
    def register(function: Any) -> Any:
        UNARY[function.__name__] = (function, weight)
        return function

    return register


def binary(weight: int = 1) -> Callable[[Any], Any]:
    def register(function: Any) -> Any:
        BINARY[function.__name__] = (function, weight)
        return function

    return register


def fits(value: Tensor, known: Sequence[Tensor]) -> bool:
    """Whether a value can be used on: small, finite (a deviation of one element is not), and a new one."""
    small = 1 < value[0].numel() <= LARGEST and 2 <= value.ndim <= 4
    return small and bool(value.isfinite().all()) and all(value is not other for other in known)
