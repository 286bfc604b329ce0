"""Operations on the elements at one place. Most need no rule here: PyTorch tags them as pointwise."""

from __future__ import annotations

from dataclasses import replace

from mergeline.symmetry import primitives
from mergeline.symmetry.labels import AbstractTensor, UnsupportedError
from mergeline.symmetry.movement import expand, slice_axis, view
from mergeline.symmetry.primitives import with_ndim
from mergeline.symmetry.rules.table import Call, rule


@rule(
    "contiguous", "clone", "alias", "detach", "to", "_to_copy", "type_as", "lift_fresh_copy", "lift_fresh", "lift",
    "positive", "requires_grad", "_conj", "resolve_conj", "resolve_neg", "cpu", "float", "double", "half",
)  # fmt: skip
def same(call: Call, x: AbstractTensor, other: object = None) -> AbstractTensor:
    """The same elements, perhaps stored differently (like `other`)."""
    call.record.keeps(x, call.node)
    return replace(x, node="")


@rule("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout")
def dropout(call: Call, x: AbstractTensor, train: bool | None = False) -> object:
    """The identity in evaluation; noise in training knows no units."""
    if train:
        raise UnsupportedError("dropout in training mode")
    call.record.keeps(x, call.node)
    return call.first(replace(x, node=""))


@rule(
    "absolute", "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctanh", "fix", "negative", "hardswish",
    "hardsigmoid", "mish", "threshold", "real", "imag", "relu6", "selu", "square", "logical_not",
    "log_sigmoid",
)  # fmt: skip
def unary(call: Call, x: AbstractTensor) -> AbstractTensor:
    """Pointwise, though not tagged so."""
    return replace(x, node="")


@rule(
    "arctan2", "divide", "multiply", "subtract", "true_divide", "floor_divide", "greater", "greater_equal", "less",
    "less_equal", "not_equal", "copysign", "__and__", "__or__", "__xor__",
)  # fmt: skip
def binary(call: Call, x: AbstractTensor, other: object) -> AbstractTensor:
    """Pointwise, though not tagged so; `other` may be a number."""
    return primitives.pointwise([x, other] if isinstance(other, AbstractTensor) else [x])


@rule("where")
def where(call: Call, condition: AbstractTensor, x: object = None, other: object = None) -> AbstractTensor:
    """Chooses between two values at each place."""
    if x is None or other is None:
        raise UnsupportedError("positions as values")
    return primitives.pointwise([t for t in (condition, x, other) if isinstance(t, AbstractTensor)])


@rule("masked_fill")
def masked_fill(call: Call, x: AbstractTensor, mask: AbstractTensor, value: object) -> AbstractTensor:
    """Replaces the elements at marked places."""
    return primitives.pointwise([t for t in (x, mask, value) if isinstance(t, AbstractTensor)])


@rule("copy")
def copy(call: Call, x: AbstractTensor, src: AbstractTensor) -> AbstractTensor:
    """The elements of `src` in the shape of x, whose own elements are lost."""
    return expand(src, x.shape)


@rule("prelu", "_prelu_kernel")
def prelu(call: Call, x: AbstractTensor, weight: AbstractTensor) -> AbstractTensor:
    """A slope for each channel: axis 1, or the only one."""
    if weight.ndim == 1 and x.ndim >= 2:
        weight = view(weight, (1, -1 if weight.shape[0] == 0 else weight.shape[0], *[1] * (x.ndim - 2)))
    return primitives.pointwise([x, with_ndim(weight, max(x.ndim, weight.ndim))])


@rule("glu")
def glu(call: Call, x: AbstractTensor, dim: int = -1) -> AbstractTensor:
    """The first half times a gate from the second half: both move alike."""
    half = x.shape[dim] // 2
    return primitives.pointwise([slice_axis(x, dim, 0, half), slice_axis(x, dim, half, 2 * half)])
