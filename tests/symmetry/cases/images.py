"""Programs of convolutions, pooling and resizing."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.symmetry.program import Case, on, operand

aten = torch.ops.aten
PIXELS = "pixels are no units"
SIZES = {1: (3,), 2: (2, 3), 3: (2, 2, 2)}


def convolution(
    do: Callable[..., Tensor],
    weight: Sequence[int],
    channels: int = 3,
    out: int | None = None,
    spatial: int = 1,
    order: int | None = None,
) -> Case:
    """`do(t, w, b)` on `channels` free channels of an image with `spatial` axes; every output pixel is read."""
    out = weight[0] if out is None else out

    def body(parameters: Any, x: Tensor) -> Tensor:
        t = (x @ parameters.first).movedim(-1, 1)
        # Weighing the pixels by their place: they cannot change places, and are no units to count.
        result = do(t, parameters.w, parameters.b).flatten(2)
        return result @ torch.arange(1.0, result.shape[2] + 1, dtype=result.dtype).sin()

    shapes = {"first": (2, channels), "w": weight, "b": (out,)}
    return Case(body, shapes, [(3, *SIZES[spatial], 2)], fixed=frozenset({"first"}), order=order)


def general(transposed: bool, groups: int) -> Callable[..., Tensor]:
    return lambda t, w, b: aten.convolution(t, w, b, [1], [0], [1], transposed, [0], groups)


# Grouped: two groups of two channels in and out. The groups change places; in each, the inputs, and the outputs.
GROUPED = 2 * (2 * 2) * (2 * 2)
CONVOLUTIONS = {
    "conv1d": convolution(functional.conv1d, (2, 3, 2)),
    "conv1d with a bias and padding": convolution(lambda t, w, b: functional.conv1d(t, w, b, padding=1), (2, 3, 2)),
    "conv2d": convolution(functional.conv2d, (2, 3, 2, 1), spatial=2),
    "conv2d with steps": convolution(lambda t, w, b: functional.conv2d(t, w, b, 2, 1), (2, 3, 1, 2), spatial=2),
    "conv3d": convolution(functional.conv3d, (2, 3, 2, 1, 1), spatial=3),
    "conv1d over units": Case(
        lambda p, x: functional.conv1d(operand(x, p.t), p.w),
        {"t": (2, 2, 3), "w": (2, 2, 2)},
        fixed=frozenset({"t"}),
        smaller=PIXELS,
    ),
    "conv without a batch": Case(
        lambda p, x: functional.conv1d((x[0][:, None] * p.first).t(), p.w)[None, :, 0] * x[:, :1],
        {"first": (3,), "w": (2, 3, 2)},
        [(5, 2)],
    ),
    "grouped": convolution(
        lambda t, w, b: functional.conv1d(t, w, b, groups=2), (4, 2, 2), channels=4, order=GROUPED
    ),
    "depthwise": convolution(
        lambda t, w, b: functional.conv1d(t, w, b, groups=3), (3, 1, 2)
    ),
    "depthwise with a multiplier": convolution(
        lambda t, w, b: functional.conv1d(t, w, b, groups=3), (6, 1, 2), order=6 * 2 * 2 * 2
    ),
    "conv_transpose1d": convolution(functional.conv_transpose1d, (3, 2, 2), out=2),
    "conv_transpose2d": convolution(functional.conv_transpose2d, (3, 2, 2, 1), out=2, spatial=2),
    "conv_transpose3d": convolution(functional.conv_transpose3d, (3, 2, 1, 1, 2), out=2, spatial=3),
    # The weight [4, 2, k] has one order of its outputs for all groups.
    "grouped and transposed": convolution(
        lambda t, w, b: functional.conv_transpose1d(t, w, b, groups=2), (4, 2, 2), channels=4, out=4, order=2**4
    ),
    "convolution": convolution(general(False, 1), (2, 3, 2)),
    "convolution, grouped": convolution(general(False, 2), (4, 2, 2), channels=4, order=GROUPED),
    "convolution, transposed": convolution(general(True, 1), (3, 2, 2), out=2),
    "_convolution": convolution(
        lambda t, w, b: torch._convolution(t, w, b, [1], [0], [1], False, [0], 1, False, False, False, False), (2, 3, 2)
    ),
}  # fmt: skip


def pooled(spatial: int, do: Callable[[Tensor], Tensor]) -> Case:
    """`do` on three free channels of an image; the pixels that come out are weighed by their place."""

    def body(parameters: Any, x: Tensor) -> Tensor:
        result = do((x @ parameters.w).movedim(-1, 1)).flatten(2)
        return result @ torch.arange(1.0, result.shape[2] + 1, dtype=result.dtype).sin()

    return Case(body, {"w": (2, 3)}, [(3, *SIZES[spatial], 2)], fixed=frozenset({"w"}))


def pool(name: str, size: int, *more: int) -> Callable[[Tensor], Tensor]:
    """One of the pooling functions of torch.nn.functional, its values where it gives indices too."""
    return lambda t: getattr(functional, name)(t, size, *more)


POOLING = {
    **{f"{kind}_pool{d}d": pooled(d, pool(f"{kind}_pool{d}d", 2, 1)) for kind in ("max", "avg") for d in (1, 2, 3)},
    **{
        name: pooled(d, pool(name, 2))
        for d in (1, 2, 3)
        for name in (f"adaptive_max_pool{d}d", f"adaptive_avg_pool{d}d")
    },
    **{
        f"{name} to one": on((2, *SIZES[d]), do=pool(name, 1))
        for d in (1, 2)
        for name in (f"adaptive_max_pool{d}d", f"adaptive_avg_pool{d}d")
    },
    "max_pool1d of units": on((2, 3), do=lambda t: functional.max_pool1d(t, 2, 1), smaller=PIXELS),
    "avg_pool2d of units": on((2, 2, 2), do=lambda t: functional.avg_pool2d(t, (2, 1)), smaller=PIXELS),
    "max_pool1d_with_indices": pooled(1, lambda t: functional.max_pool1d_with_indices(t, [2], [1])[0]),
    "max_pool2d_with_indices": pooled(2, lambda t: functional.max_pool2d_with_indices(t, [2], [1])[0]),
    "max_pool3d_with_indices": pooled(3, lambda t: functional.max_pool3d_with_indices(t, [2], [1])[0]),
    "_adaptive_avg_pool2d": pooled(2, lambda t: torch._adaptive_avg_pool2d(t, 2)),
    "_adaptive_avg_pool3d": pooled(3, lambda t: torch._adaptive_avg_pool3d(t, 2)),
}


def resized(name: str, *arguments: Any, spatial: int) -> Case:
    return pooled(spatial, lambda t: getattr(aten, name)(t, [3] * spatial, *arguments))


def bordered(name: str, spatial: int) -> Callable[[Tensor], Tensor]:
    return lambda t: getattr(aten, name)(t, [1] * 2 * spatial)


RESIZING = {
    "upsample_nearest1d": resized("upsample_nearest1d", spatial=1),
    "upsample_nearest2d": resized("upsample_nearest2d", spatial=2),
    "upsample_nearest3d": resized("upsample_nearest3d", spatial=3),
    "_upsample_nearest_exact1d": resized("_upsample_nearest_exact1d", spatial=1),
    "_upsample_nearest_exact2d": resized("_upsample_nearest_exact2d", spatial=2),
    "upsample_linear1d": resized("upsample_linear1d", False, spatial=1),
    "upsample_bilinear2d": resized("upsample_bilinear2d", False, spatial=2),
    "upsample_bicubic2d": resized("upsample_bicubic2d", False, spatial=2),
    "upsample_trilinear3d": resized("upsample_trilinear3d", False, spatial=3),
    "_upsample_bilinear2d_aa": resized("_upsample_bilinear2d_aa", False, spatial=2),
    "_upsample_bicubic2d_aa": resized("_upsample_bicubic2d_aa", False, spatial=2),
    **{
        name: pooled(d, bordered(name, d))
        for d in (1, 2, 3)
        for name in (f"reflection_pad{d}d", f"replication_pad{d}d")
    },
}

CASES = {**CONVOLUTIONS, **POOLING, **RESIZING}
