"""Steps on the elements, the axes and the shape of one value."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.symmetry.steps.making import Maker, Step, unary

# Scales, shifts and norms.


@unary(weight=2)
def scale(make: Maker, x: Tensor) -> Step:
    axis = make.axis(x)
    w = make.parameter(*[n if k == axis else 1 for k, n in enumerate(x.shape)][1:])
    return lambda p, x: x * getattr(p, w)


@unary(weight=2)
def shift(make: Maker, x: Tensor) -> Step:
    w = make.parameter(*x.shape[1:])
    return lambda p, x: x + getattr(p, w)


@unary(weight=2)
def layer_norm(make: Maker, x: Tensor) -> Step:
    w, b = make.parameter(x.shape[-1]), make.parameter(x.shape[-1])
    return lambda p, x: functional.layer_norm(x, x.shape[-1:], getattr(p, w), getattr(p, b))


@unary(weight=2)
def group_norm(make: Maker, x: Tensor) -> Step | None:
    groups = make.random.choice([g for g in (1, 2, 3) if x.shape[1] % g == 0])
    w = make.parameter(x.shape[1])
    return (lambda p, x: functional.group_norm(x, groups, getattr(p, w))) if x[0].numel() > groups else None


@unary()
def batch_norm(make: Maker, x: Tensor) -> Step:
    mean, variance = make.parameter(x.shape[1]), make.parameter(x.shape[1])
    return lambda p, x: functional.batch_norm(x, getattr(p, mean), getattr(p, variance).abs() + 0.5)


@unary()
def prelu(make: Maker, x: Tensor) -> Step:
    w = make.parameter(x.shape[1])
    return lambda p, x: functional.prelu(x, getattr(p, w))


@unary(weight=4)
def activation(make: Maker, x: Tensor) -> Step:
    function = make.random.choice([torch.relu, torch.tanh, functional.gelu, torch.sin, torch.abs, functional.hardswish])
    return lambda p, x: function(x)


@unary()
def in_place(make: Maker, x: Tensor) -> Step:
    return lambda p, x: x.clone().mul_(0.5).add_(x).relu_()


# Whole axes.

FUNCTIONS_OF_AN_AXIS: list[Step] = [torch.mean, torch.amax, torch.amin, torch.std, torch.prod, torch.logsumexp]


@unary(weight=2)
def softmax(make: Maker, x: Tensor) -> Step:
    axis = make.axis(x)
    return lambda p, x: x.softmax(axis)


@unary(weight=2)
def reduction(make: Maker, x: Tensor) -> Step:
    axis, function = make.axis(x), make.random.choice(FUNCTIONS_OF_AN_AXIS)
    return lambda p, x: x - function(x, dim=axis, keepdim=True)


@unary()
def dropped_axis(make: Maker, x: Tensor) -> Step | None:
    axis, function = make.axis(x), make.random.choice(FUNCTIONS_OF_AN_AXIS)
    return (lambda p, x: function(x, dim=axis)) if x.ndim > 2 else None


@unary()
def ordered(make: Maker, x: Tensor) -> Step:
    axis, keep = make.axis(x), make.random.random() < 0.5
    return lambda p, x: x.sort(axis).values if keep else x.topk(max(1, x.shape[axis] - 1), axis).values


@unary()
def by_extreme(make: Maker, x: Tensor) -> Step:
    axis = make.axis(x)
    return lambda p, x: x * (1.0 + x.argmax(axis, keepdim=True))


@unary()
def cumulative(make: Maker, x: Tensor) -> Step:
    axis = make.axis(x)
    return lambda p, x: x.cumsum(axis).tanh()


# Movement.


@unary(weight=3)
def transpose(make: Maker, x: Tensor) -> Step | None:
    first, second = make.axis(x), make.axis(x)
    return (lambda p, x: x.transpose(first, second)) if first != second else None


@unary(weight=3)
def flatten(make: Maker, x: Tensor) -> Step | None:
    axis = make.axis(x)
    return (lambda p, x: x.flatten(axis, axis + 1)) if axis < x.ndim - 1 else None


@unary(weight=3)
def unflatten(make: Maker, x: Tensor) -> Step | None:
    axis = make.axis(x)
    n = x.shape[axis]
    parts = [k for k in (2, 3) if n % k == 0 and n > k]
    if not parts or x.ndim > 3:
        return None
    outer = make.random.choice(parts)
    return lambda p, x: x.unflatten(axis, (outer, n // outer))


@unary(weight=2)
def part(make: Maker, x: Tensor) -> Step | None:
    axis = make.axis(x)
    n = x.shape[axis]
    start = make.random.randrange(n)
    stop = make.random.randint(start + 1, n)
    return (lambda p, x: x.narrow(axis, start, stop - start)) if stop - start > 1 else None


@unary(weight=2)
def parts_exchanged(make: Maker, x: Tensor) -> Step | None:
    axis = make.axis(x)
    cut = make.random.randint(1, max(1, x.shape[axis] - 1))
    return (
        (lambda p, x: torch.cat([t.sin() for t in x.split([cut, x.shape[axis] - cut], axis)][::-1], axis))
        if x.shape[axis] > 1
        else None
    )


@unary(weight=2)
def gated(make: Maker, x: Tensor) -> Step | None:
    axis = make.axis(x)
    return (lambda p, x: functional.glu(x, axis)) if x.shape[axis] % 2 == 0 and x.shape[axis] > 2 else None


@unary()
def every_second(make: Maker, x: Tensor) -> Step | None:
    axis = make.axis(x)
    index = tuple(slice(None, None, 2) if k == axis else slice(None) for k in range(x.ndim))
    return (lambda p, x: x[index]) if x.shape[axis] > 2 else None


@unary()
def shifted(make: Maker, x: Tensor) -> Step:
    axis, rolls = make.axis(x), make.random.random() < 0.5
    return lambda p, x: x + (x.roll(1, axis) if rolls else x.flip(axis)).tanh()


@unary()
def triangle(make: Maker, x: Tensor) -> Step | None:
    return (lambda p, x: x.tril()) if x.ndim > 2 else None


@unary()
def padded(make: Maker, x: Tensor) -> Step:
    before, after = make.random.randint(0, 1), make.random.randint(0, 1)
    return lambda p, x: functional.pad(x, (before, after), value=0.5)


@unary()
def repeated(make: Maker, x: Tensor) -> Step:
    axis, interleaved = make.axis(x), make.random.random() < 0.5
    counts = [2 if k == axis else 1 for k in range(x.ndim)]
    return lambda p, x: x.repeat_interleave(2, axis) if interleaved else x.repeat(counts)


@unary()
def expanded(make: Maker, x: Tensor) -> Step | None:
    w, axis = make.parameter(2, *[1] * (x.ndim - 1)), 1
    return (lambda p, x: x.unsqueeze(axis).expand(-1, 2, *x.shape[1:]) * getattr(p, w)) if x.ndim < 4 else None


@unary()
def looked_up(make: Maker, x: Tensor) -> Step:
    axis = make.axis(x)
    index = torch.tensor([make.random.randrange(x.shape[axis]) for _ in range(x.shape[axis])])
    return lambda p, x: x.index_select(axis, index)


@unary()
def table(make: Maker, x: Tensor) -> Step:
    """Rows of a table of parameters, looked up for each place, added."""
    w = make.parameter(3, x.shape[-1])
    rows = torch.tensor([make.random.randrange(3) for _ in range(x.shape[-2] if x.ndim > 2 else 1)])
    return lambda p, x: x + functional.embedding(rows, getattr(p, w))


@unary()
def masked(make: Maker, x: Tensor) -> Step:
    mask = torch.tensor([make.random.random() < 0.3 for _ in range(x.shape[-1])])
    return lambda p, x: x.masked_fill(mask, 0.7)


@unary()
def written(make: Maker, x: Tensor) -> Step:
    """The first index of an axis replaced by the second's tanh, in place."""
    axis = make.axis(x)
    if x.shape[axis] < 2:
        return lambda p, x: x

    def step(p: Any, x: Tensor) -> Tensor:
        x = x.clone()
        x.select(axis, 0).copy_(x.select(axis, 1).tanh())
        return x

    return step
