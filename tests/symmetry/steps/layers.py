"""Steps that have units of their own, or compute their weights."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.symmetry.steps.making import LETTERS, Maker, Step, unary

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


# Layers whose weights are computed from parameters.


@unary(weight=2)
def low_rank(make: Maker, x: Tensor) -> Step:
    """A matrix that is the product of two, added to a third (LoRA)."""
    units, rank = make.size(), make.random.choice([2, 3])
    w, a, b = make.parameter(units, x.shape[-1]), make.parameter(units, rank), make.parameter(rank, x.shape[-1])
    return lambda p, x: functional.linear(x, getattr(p, w) + getattr(p, a) @ getattr(p, b))


@unary(weight=2)
def weight_norm(make: Maker, x: Tensor) -> Step:
    units = make.size()
    v, g = make.parameter(units, x.shape[-1]), make.parameter(units)

    def step(p: Any, x: Tensor) -> Tensor:
        direction = getattr(p, v) / getattr(p, v).norm(dim=1, keepdim=True)
        return functional.linear(x, direction * getattr(p, g).unsqueeze(1))

    return step


@unary()
def flat_weight(make: Maker, x: Tensor) -> Step:
    """A matrix stored as a vector."""
    units = make.size()
    w = make.parameter(units * x.shape[-1])
    return lambda p, x: x @ getattr(p, w).view(units, x.shape[-1]).t()


@unary()
def stacked_weights(make: Maker, x: Tensor) -> Step | None:
    """Several matrices stored in one tensor, each used by itself."""
    units = make.size()
    w = make.parameter(2, units, x.shape[-1])

    def step(p: Any, x: Tensor) -> Tensor:
        first, second = getattr(p, w)
        return functional.linear(x, first) * functional.linear(x, second).sigmoid()

    return step


@unary()
def standardised_conv(make: Maker, x: Tensor) -> Step | None:
    w = make.parameter(make.size(), x.shape[1], 1)

    def step(p: Any, x: Tensor) -> Tensor:
        weight = getattr(p, w)
        return functional.conv1d(x, weight - weight.mean((1, 2), keepdim=True))

    return step if x.ndim == 3 and x.shape[1] > 1 else None


@unary(weight=2)
def contraction(make: Maker, x: Tensor) -> Step:
    """An einsum with a parameter that shares, sums and adds axes at random."""
    axes = LETTERS[: x.ndim - 1]
    shared = "".join(axis for axis in axes if make.random.random() < 0.6) or axes[0]
    kept = "".join(axis for axis in axes if axis not in shared or make.random.random() < 0.5) + "z"
    sizes = [x.shape[1 + axes.index(axis)] for axis in shared]
    order = make.random.sample(range(len(shared) + 1), len(shared) + 1)
    names, shape = [*shared, "z"], [*sizes, make.size()]
    w = make.parameter(*(shape[k] for k in order))
    equation = f"n{axes},{''.join(names[k] for k in order)}->n{kept}"
    return lambda p, x: torch.einsum(equation, x, getattr(p, w)).tanh()


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
