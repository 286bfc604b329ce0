"""Convolutions: contractions over channels, while the positions of kernel and image stay where they are."""

from __future__ import annotations

from mergeline.symmetry.contraction import einsum
from mergeline.symmetry.labels import FIXED, AbstractTensor, move
from mergeline.symmetry.movement import merge, permute, split, unsqueeze, view
from mergeline.symmetry.primitives import drop, freeze, pointwise, tie_all
from mergeline.symmetry.rules.table import Call, Parameter, labelled, rule

Operand = AbstractTensor | Parameter
KERNEL = "positions of a convolution"


@rule("conv1d", "conv2d", "conv3d", lazy=True)
def convolution(
    call: Call, x: Operand, weight: Operand, bias: Operand | None = None, groups: int = 1
) -> AbstractTensor:
    """Sums over input channels (of the same group), gives output channels."""
    return _convolve(call, labelled(x), weight, bias, groups, transposed=False)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", lazy=True)
def transposed_convolution(
    call: Call, x: Operand, weight: Operand, bias: Operand | None = None, groups: int = 1
) -> AbstractTensor:
    """The same with the first two axes of the weight exchanged."""
    return _convolve(call, labelled(x), weight, bias, groups, transposed=True)


@rule("convolution", "_convolution", lazy=True)
def general_convolution(
    call: Call,
    x: Operand,
    weight: Operand,
    bias: Operand | None = None,
    groups: int = 1,
    transposed: bool = False,
) -> AbstractTensor:
    """Either of them."""
    return _convolve(call, labelled(x), weight, bias, groups, transposed)


def _convolve(
    call: Call, x: AbstractTensor, weight: Operand, bias: Operand | None, groups: int, transposed: bool
) -> AbstractTensor:
    """x [n, c, ...] or [c, ...], weight [out, c / groups, ...] or, transposed, [c, out / groups, ...]."""
    kernel = labelled(weight, 1 if transposed else groups)
    batched = x.ndim == kernel.ndim
    inputs, outputs = (0, 1) if transposed else (1, 0)
    call.record.reads(x, 1 if batched else 0, call.node)
    call.record.reads(kernel, inputs, call.node)
    produced = kernel.sources[outputs]
    image = _channels_only(x if batched else unsqueeze(x, 0))
    matrix = _channels_only(kernel)
    result = _contract(image, permute(matrix, [1, 0]) if transposed else matrix, groups, transposed)
    activation = image.activation or matrix.activation
    spatial = kernel.ndim - 2
    shape = (*result.shape, *call.shape[len(call.shape) - spatial :])
    labels = [move(label, lambda a: a.reshape(a.shape + (1,) * spatial)) for label in result.labels]
    result = AbstractTensor(x.domains, shape, (*labels, *[FIXED] * spatial), activation=activation)
    if activation:
        produces = [frozenset(), produced, *[frozenset()] * spatial]
        call.record.writes(produces if batched else produces[1:], call.node)
    if bias is not None:
        vector = labelled(bias)
        result = pointwise([result, view(vector, (1, vector.shape[0], *[1] * spatial))])
    return result if batched else drop(result, 0)


def _channels_only(x: AbstractTensor) -> AbstractTensor:
    """The first two axes; the spatial ones are fixed, and channels move alike at every position."""
    for axis in reversed(range(2, x.ndim)):
        x = drop(tie_all(freeze(x, axis, KERNEL), axis), axis)
    return x


def _contract(image: AbstractTensor, matrix: AbstractTensor, groups: int, transposed: bool) -> AbstractTensor:
    """[n, c] with [out, c / groups], or transposed [out / groups, c], to [n, out]."""
    if groups == 1:
        return einsum("bi,oi->bo", [image, matrix])
    channels = split(image, 1, groups, image.shape[1] // groups)
    for level in channels.label(1) or ():
        for domain in level.members:
            image.domains.suggest(domain, "groups")
    if transposed:
        by_group = split(matrix, 1, groups, matrix.shape[1] // groups)
        return merge(einsum("bgi,ogi->bgo", [channels, by_group]), 1)
    by_group = split(matrix, 0, groups, matrix.shape[0] // groups)
    return merge(einsum("bgi,goi->bgo", [channels, by_group]), 1)
