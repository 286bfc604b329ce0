"""The kinds of steps that random programs are made of.

A step is made for one or two values [n, ...] at hand; it is a function of the program's parameters and those values,
or None where the values do not suit it. What it draws at random, it draws when it is made.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Step = Callable[..., Tensor]
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


# Layers with units of their own.


@unary(weight=12)
def linear(make: Maker, x: Tensor) -> Step:
    units = make.size()
    w, b = make.parameter(units, x.shape[-1]), make.parameter(units)
    return lambda p, x: functional.linear(x, getattr(p, w), getattr(p, b))


@unary(weight=2)
def reused_linear(make: Maker, x: Tensor) -> Step | None:
    """A matrix that the program has already, as it is or transposed."""
    fitting = [
        (name, axis)
        for name, shape in make.shapes.items()
        for axis in (0, 1)
        if len(shape) == 2 and shape[axis] == x.shape[-1]
    ]
    if not fitting:
        return None
    name, axis = make.random.choice(fitting)
    return lambda p, x: (x @ (getattr(p, name) if axis == 0 else getattr(p, name).t())).tanh()


@unary(weight=2)
def experts(make: Maker, x: Tensor) -> Step | None:
    count, hidden, units = make.random.choice([2, 3]), make.size(), make.size()
    up, down = make.parameter(count, x.shape[-1], hidden), make.parameter(count, hidden, units)
    gates = make.parameter(x.shape[-1], count)

    def step(p: Any, x: Tensor) -> Tensor:
        inner = torch.einsum("nd,edh->neh", x, getattr(p, up)).relu()
        chosen = (x @ getattr(p, gates)).softmax(-1)
        return torch.einsum("neh,ehd,ne->nd", inner, getattr(p, down), chosen)

    return step if x.ndim == 2 else None


@unary(weight=3)
def conv1d(make: Maker, x: Tensor) -> Step | None:
    groups = make.random.choice([g for g in (1, 1, 2, 3, x.shape[1]) if x.shape[1] % g == 0])
    outputs = groups * make.random.choice([1, 2])
    w, b = make.parameter(outputs, x.shape[1] // groups, 3), make.parameter(outputs)
    step = lambda p, x: functional.conv1d(x, getattr(p, w), getattr(p, b), padding=1, groups=groups)  # noqa: E731
    return step if x.ndim == 3 and x.shape[1] > 1 else None


@unary(weight=2)
def conv_transpose1d(make: Maker, x: Tensor) -> Step | None:
    groups = make.random.choice([g for g in (1, 2) if x.shape[1] % g == 0])
    w = make.parameter(x.shape[1], 2, 3)
    return (
        (lambda p, x: functional.conv_transpose1d(x, getattr(p, w), padding=1, groups=groups)) if x.ndim == 3 else None
    )


@unary(weight=4)
def attention(make: Maker, x: Tensor) -> Step | None:
    """Self-attention with one projection, ordered in any way; perhaps normalised or turned by position."""
    if x.ndim != 3:
        return None
    heads, width, dim = make.random.choice([2, 3]), make.random.choice([2, 4]), x.shape[-1]
    order = make.random.choice(["3hd", "h3d", "3dh"])
    w, b = make.parameter(3 * heads * width, dim), make.parameter(3 * heads * width)
    out = make.parameter(dim, heads * width)
    norm = make.parameter(width) if make.random.random() < 0.3 else None
    rotary, causal = make.random.random() < 0.2, make.random.random() < 0.3
    places = {letter: 2 + place for place, letter in enumerate(order)}
    shape = [{"3": 3, "h": heads, "d": width}[letter] for letter in order]

    def step(p: Any, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        fused = functional.linear(x, getattr(p, w), getattr(p, b)).view(n, tokens, *shape)
        q, k, v = fused.permute(places["3"], 0, places["h"], 1, places["d"])
        if norm is not None:
            q, k = (functional.layer_norm(t, (width,), getattr(p, norm)) for t in (q, k))
        if rotary:
            q, k = turned(q), turned(k)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return x + functional.linear(mixed.transpose(1, 2).reshape(n, tokens, -1), getattr(p, out))

    return step


def turned(x: Tensor) -> Tensor:
    """The first two units of each head, turned by the position."""
    angle = torch.arange(x.shape[2], dtype=x.dtype)[:, None]
    first, second, rest = x[..., :1], x[..., 1:2], x[..., 2:]
    return torch.cat([first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos(), rest], -1)


@unary()
def gru_cell(make: Maker, x: Tensor) -> Step | None:
    units = make.random.choice([2, 3])
    w_ih, w_hh = make.parameter(3 * units, x.shape[-1]), make.parameter(3 * units, units)
    return (
        (lambda p, x: torch.gru_cell(x, x.new_zeros(len(x), units).cos(), getattr(p, w_ih), getattr(p, w_hh)))
        if x.ndim == 2
        else None
    )


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


def fits(value: Tensor, known: Sequence[Tensor]) -> bool:
    """Whether a value can be used on: small, finite (a deviation of one element is not), and a new one."""
    small = 1 < value[0].numel() <= LARGEST and 2 <= value.ndim <= 4
    return small and bool(value.isfinite().all()) and all(value is not other for other in known)
