"""What the suite needs to know about one architecture, and what several of them are made of."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Architecture:
    """A tiny model of some architecture and inputs to trace it with."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    sizes: tuple[int, ...] = ()
    """Sizes of the sets of units that may be exchanged, one for every copy; the group has the product of their
    factorials as its order. Empty where the order is compared with a published table instead."""
    needs: str = "torch"
    """The package that the model comes from."""


def images(side: int, count: int = 2) -> Callable[[], tuple[Tensor, ...]]:
    """Inputs of an image model: [count, 3, side, side]."""
    return lambda: (torch.randn(count, 3, side, side),)


def vectors(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    """One floating input of this shape."""
    return lambda: (torch.randn(shape),)


def words(vocabulary: int, *lengths: int) -> Callable[[], tuple[Tensor, ...]]:
    """Two sentences of token ids for each length; the special ids 0..2 are left out."""
    return lambda: tuple(torch.randint(3, vocabulary, (2, length)) for length in lengths)
