"""Normalisation layers: elements are scaled by symmetric functions of groups of elements."""

from __future__ import annotations

from collections.abc import Sequence

from mergeline.symmetry.labels import AbstractTensor
from mergeline.symmetry.movement import merge, split, view
from mergeline.symmetry.primitives import normalise, pointwise
from mergeline.symmetry.rules.table import Call, rule

Optional = AbstractTensor | None


@rule("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(
    call: Call, x: AbstractTensor, normalized_shape: Sequence[int], weight: Optional = None, bias: Optional = None
) -> object:
    """Over the last axes, then an affine map for each place."""
    result = normalise(x, range(x.ndim - len(normalized_shape), x.ndim))
    return call.first(pointwise([result, *[t for t in (weight, bias) if t is not None]]))


def _by_channel(x: AbstractTensor, ndim: int) -> AbstractTensor:
    """A vector of one value per channel, shaped to stand at axis 1."""
    return view(x, (1, x.shape[0], *[1] * (ndim - 2)))


@rule(
    "batch_norm", "native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training", "_batch_norm_impl_index", "instance_norm",
)  # fmt: skip
def batch_norm(
    call: Call,
    x: AbstractTensor,
    weight: Optional = None,
    bias: Optional = None,
    running_mean: Optional = None,
    running_var: Optional = None,
    training: bool = False,
    use_input_stats: bool = False,
) -> object:
    """Each channel by its own statistics, given or of the batch, then its own affine map."""
    if training or use_input_stats or running_mean is None:
        first = 2 if call.name == "instance_norm" else 0
        x = normalise(x, [axis for axis in range(first, x.ndim) if axis != 1])
    vectors = [t for t in (weight, bias, running_mean, running_var) if t is not None]
    return call.first(pointwise([x, *[_by_channel(t, x.ndim) for t in vectors]]))


@rule("group_norm", "native_group_norm")
def group_norm(
    call: Call,
    x: AbstractTensor,
    num_groups: int = 0,
    group: int = 0,
    weight: Optional = None,
    bias: Optional = None,
) -> object:
    """Over groups of channels: groups move whole, and channels inside a group."""
    groups, channels = num_groups or group, x.shape[1]
    if 1 < groups < channels:
        x = split(x, 1, groups, channels // groups)
        for level in x.label(1) or ():
            for domain in level.members:
                x.domains.suggest(domain, "groups")
        x = merge(normalise(x, range(2, x.ndim)), 1)
    else:
        x = normalise(x, range(1 if groups == 1 else 2, x.ndim))
    vectors = [t for t in (weight, bias) if t is not None]
    return call.first(pointwise([x, *[_by_channel(t, x.ndim) for t in vectors]]))


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(call: Call, v: AbstractTensor, g: AbstractTensor, dim: int = 0) -> object:
    """A weight scaled to a given norm, for each index of one axis (-1: as a whole)."""
    axes = [axis for axis in range(v.ndim) if dim == -1 or axis != dim % v.ndim]
    return call.first(pointwise([normalise(v, axes), g]))
