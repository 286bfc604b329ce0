"""Operations over whole axes that do not care for the order there, and some that do."""

from __future__ import annotations

from collections.abc import Sequence

from mergeline.symmetry.labels import CONSTANT, FIXED, AbstractTensor
from mergeline.symmetry.primitives import freeze, freeze_all, normalise, pointwise, reduce, tie_all
from mergeline.symmetry.rules.table import Call, rule

Dims = int | Sequence[int] | None


def axes_of(x: AbstractTensor, dim: Dims) -> list[int]:
    """The axes that an argument `dim` means: none or an empty list means all."""
    if dim is None or dim == []:
        return list(range(x.ndim))
    return [axis % x.ndim for axis in ([dim] if isinstance(dim, int) else dim)] if x.ndim else []


@rule(
    "mean", "sum", "amax", "amin", "std", "var", "prod", "logsumexp", "linalg_vector_norm", "norm", "all", "any",
    "nanmean", "nansum",
)  # fmt: skip
def reduction(call: Call, x: AbstractTensor, dim: Dims = None, keepdim: bool = False) -> AbstractTensor:
    """A symmetric function of everything along the axes."""
    call.record.pools(x, call.node)
    return reduce(x, axes_of(x, dim), keepdim=keepdim)


@rule("std_mean", "var_mean", "aminmax")
def reductions(call: Call, x: AbstractTensor, dim: Dims = None, keepdim: bool = False) -> object:
    """Two symmetric functions of everything along the axes."""
    result = reduce(x, axes_of(x, dim), keepdim=keepdim)
    return result, result


@rule("max", "min", "median", "nanmedian")
def extreme(
    call: Call, x: AbstractTensor, dim: int | None = None, keepdim: bool = False, other: object = None
) -> object:
    """The value is symmetric along the axis, the index of the place is not; with `other`, pointwise."""
    if isinstance(other, AbstractTensor):
        return pointwise([x, other])
    if dim is None:
        return reduce(x, axes_of(x, None))
    if 1 in call.used:
        x = freeze(x, dim, "the place of an extreme value is used")
    result = reduce(x, [dim], keepdim=keepdim)
    return result, result


@rule("argmax", "argmin")
def index_of_extreme(call: Call, x: AbstractTensor, dim: int | None = None, keepdim: bool = False) -> AbstractTensor:
    """The result is a place along the axis."""
    axes = axes_of(x, dim)
    for axis in axes:
        x = freeze(x, axis, "the place of an extreme value is used")
    return reduce(x, axes, keepdim=keepdim)


@rule("softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax", "softmin")
def softmax(call: Call, x: AbstractTensor, dim: int) -> AbstractTensor:
    """Every element is divided by a symmetric function of its row."""
    return normalise(x, [dim]) if x.ndim else x


@rule("cumsum", "cumprod", "logcumsumexp")
def cumulative(call: Call, x: AbstractTensor, dim: int) -> AbstractTensor:
    """Runs along the axis in order."""
    return tie_all(freeze(x, dim, f"{call.name} runs in order"), dim)


@rule("diff")
def difference(call: Call, x: AbstractTensor, n: int = 1, dim: int = -1) -> AbstractTensor:
    """Compares neighbours along the axis."""
    dim %= x.ndim
    x = tie_all(freeze(x, dim, "diff compares neighbours"), dim)
    return AbstractTensor(x.domains, call.shape, x.labels, x.sources, x.activation)


@rule("sort", "topk")
def ordered(call: Call, x: AbstractTensor, dim: int = -1) -> object:
    """Values in an order of their own: the order of the inputs does not matter unless their places are used."""
    dim %= x.ndim
    if 1 in call.used:
        x = freeze(x, dim, f"the places that {call.name} finds are used")
    x = normalise(x, [dim])
    labels = (*x.labels[:dim], FIXED if call.shape[dim] > 1 else CONSTANT, *x.labels[dim + 1 :])
    result = AbstractTensor(x.domains, call.shape, labels, activation=x.activation)
    return result, result


@rule("tril", "triu")
def triangle(call: Call, x: AbstractTensor) -> AbstractTensor:
    """Keeps elements by their place in the last two axes."""
    for axis in (x.ndim - 1, x.ndim - 2):
        x = tie_all(freeze(x, axis, f"{call.name} looks at places"), axis)
    return x


@rule("meshgrid")
def meshgrid(call: Call, tensors: Sequence[AbstractTensor]) -> object:
    """Coordinates tell places."""
    frozen = [freeze_all(x, "meshgrid makes places of values") for x in tensors]
    activation = any(x.activation for x in frozen)
    return tuple(
        AbstractTensor(call.domains, shape, (FIXED,) * len(shape), activation=activation)
        for shape in call.shapes
        if shape is not None
    )
