"""Steps on two values."""

import torch
from torch import Tensor

from tests.symmetry.steps.making import Maker, Step, binary

# Two values.


@binary(weight=4)
def combined(make: Maker, x: Tensor, y: Tensor) -> Step | None:
    functions: list[Step] = [torch.add, torch.maximum, lambda x, y: x * y.tanh()]
    function = make.random.choice(functions)
    return (lambda p, x, y: function(x, y)) if x.shape == y.shape else None


@binary(weight=2)
def combined_across(make: Maker, x: Tensor, y: Tensor) -> Step | None:
    """[n, a, b] with [n, b]."""
    fits = x.ndim == 3 and y.ndim == 2 and x.shape[2] == y.shape[1]
    return (lambda p, x, y: x + y.unsqueeze(1)) if fits else None


@binary(weight=3)
def joined(make: Maker, x: Tensor, y: Tensor) -> Step | None:
    if x.ndim != y.ndim:
        return None
    axes = [k for k in range(1, x.ndim) if x.shape[:k] == y.shape[:k] and x.shape[k + 1 :] == y.shape[k + 1 :]]
    if not axes:
        return None
    axis = make.random.choice(axes)
    return lambda p, x, y: torch.cat([x, y.tanh()], axis)


@binary(weight=2)
def stacked(make: Maker, x: Tensor, y: Tensor) -> Step | None:
    axis = make.axis(x)
    return (lambda p, x, y: torch.stack([x, y], axis)) if x.shape == y.shape and x.ndim < 4 else None


@binary(weight=2)
def product(make: Maker, x: Tensor, y: Tensor) -> Step | None:
    fits = x.ndim == y.ndim == 3 and x.shape[2] == y.shape[2]
    return (lambda p, x, y: (x @ y.transpose(1, 2)).tanh()) if fits else None


@binary(weight=2)
def outer(make: Maker, x: Tensor, y: Tensor) -> Step | None:
    return (lambda p, x, y: torch.einsum("na,nb->nab", x, y.tanh())) if x.ndim == y.ndim == 2 else None


@binary()
def chosen(make: Maker, x: Tensor, y: Tensor) -> Step | None:
    return (lambda p, x, y: torch.where(x > y, x.sin(), y)) if x.shape == y.shape else None


@binary()
def gathered(make: Maker, x: Tensor, y: Tensor) -> Step | None:
    axis = make.axis(x)
    n = x.shape[axis]
    return (lambda p, x, y: x.gather(axis, (y > 0).long() % n)) if x.shape == y.shape else None
