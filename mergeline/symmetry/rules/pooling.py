"""Pooling, resizing and padding of images: channels pass, positions stay where they are."""

from __future__ import annotations

import re

from mergeline.symmetry.labels import CONSTANT, FIXED, AbstractTensor
from mergeline.symmetry.primitives import freeze, normalise
from mergeline.symmetry.rules.table import Call, rule


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "upsample_linear1d", "upsample_bilinear2d",
    "_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_bicubic2d_aa", "upsample_trilinear3d",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
    "replication_pad3d",
)  # fmt: skip
def pooling(call: Call, x: AbstractTensor) -> object:
    """Mixes certain positions of each channel; adaptive pooling to one position takes all of them alike."""
    call.record.pools(x, call.node)
    spatial = int(re.findall(r"[123](?=d)", call.name)[-1])
    axes = range(x.ndim - spatial, x.ndim)
    x = normalise(x, axes)
    to_one = "adaptive" in call.name and all(call.shape[axis] == 1 for axis in axes)
    for axis in () if to_one else axes:
        x = freeze(x, axis, "positions of an image")
    labels = [CONSTANT if call.shape[axis] == 1 else FIXED for axis in axes]
    result = AbstractTensor(
        x.domains,
        call.shape,
        (*x.labels[: axes.start], *labels),
        (*x.sources[: axes.start], *[frozenset()] * spatial),
        x.activation,
    )
    return call.first(result)
