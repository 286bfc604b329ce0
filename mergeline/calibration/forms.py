"""Linear maps of a module as matrices: what each multiplies its weight with, and how weights become such matrices.

A map has `groups` matrices [g, outputs, inputs] (one but for grouped convolutions). Inputs are ordered by the kernel's
first axis, then by channel, then by its other axes: a convolution then is one product for each *tap*, a place on the
kernel's first axis. Taps one row apart read the same rows, so most of their products are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Taps:
    """The inputs of a map as columns: for each tap a matrix [g, inputs, columns], float32.

    rows: how many columns lie in one row of the image, where tap t is tap 0 moved down by t rows; otherwise 0.
    """

    matrices: tuple[Tensor, ...]
    all_rows: Tensor | None = None
    rows: int = 0

    @property
    def sizes(self) -> list[int]:
        """Inputs of each tap, per group."""
        return [matrix.shape[1] for matrix in self.matrices]


class Form(Protocol):
    """How a layer multiplies its input with its weight."""

    @property
    def channel(self) -> int:
        """Axis of inputs and outputs that holds the channels."""

    @property
    def batch(self) -> int:
        """Axis of inputs and outputs that counts the examples."""

    @property
    def groups(self) -> int:
        """How many parts of the channels are kept apart."""

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's output without a bias."""

    def taps(self, x: Tensor, shift: Tensor, places: Tensor | None) -> Taps:
        """The inputs less `shift` [channels] as columns: all, or those at some places of the output."""

    def by_input(self, channels: Tensor) -> Tensor:
        """A number for each channel of the input as one for each input of a group, [g, inputs]."""

    def to_matrix(self, weight: Tensor) -> Tensor:
        """The weight as [g, outputs, inputs]."""

    def to_weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The inverse of `to_matrix`, in the shape of a weight."""


@dataclass(frozen=True)
class Linear:
    """x @ weight.T, or x @ weight where it is stored transposed; channels last."""

    transposed: bool = False
    batch: int = 0
    channel: int = -1
    groups: int = 1

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return functional.linear(x, weight.T if self.transposed else weight)

    def taps(self, x: Tensor, shift: Tensor, places: Tensor | None) -> Taps:
        """One tap: every vector is a column."""
        return Taps((columns(x - shift, self, places)[None],))

    def by_input(self, channels: Tensor) -> Tensor:
        """[1, inputs]."""
        return channels[None]

    def to_matrix(self, weight: Tensor) -> Tensor:
        """[1, outputs, inputs]."""
        return (weight.T if self.transposed else weight)[None]

    def to_weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The inverse of `to_matrix`."""
        return (matrix[0].T if self.transposed else matrix[0]).reshape(like.shape)


@dataclass(frozen=True)
class Scale:
    """A factor for every channel: a normalisation in eval mode that has no linear layer in front of it."""

    groups: int
    channel: int = 1
    batch: int = 0

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """[batch, channels, ...] times a factor for each channel."""
        return x * weight.reshape(-1, *(1 for _ in x.shape[2:]))

    def taps(self, x: Tensor, shift: Tensor, places: Tensor | None) -> Taps:
        """One tap of one input in every group."""
        return Taps((columns(x, self, places)[:, None] - shift[:, None, None],))

    def by_input(self, channels: Tensor) -> Tensor:
        """[channels, 1]."""
        return channels[:, None]

    def to_matrix(self, weight: Tensor) -> Tensor:
        """[channels, 1, 1]."""
        return weight.reshape(-1, 1, 1)

    def to_weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The inverse of `to_matrix`."""
        return matrix.reshape(like.shape)


@dataclass(frozen=True)
class Convolution:
    """A convolution over any number of axes; padding holds the zeros before and after each."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    channel: int = 1
    batch: int = 0

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """[batch, channels, ...] -> [batch, outputs, ...]."""
        convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[len(self.stride) - 1]
        if all(before == after for before, after in self.padding):
            symmetric = [before for before, _ in self.padding]
            return convolve(x, weight, None, self.stride, symmetric, self.dilation, self.groups)
        return convolve(self._padded(x), weight, None, self.stride, 0, self.dilation, self.groups)

    def taps(self, x: Tensor, shift: Tensor, places: Tensor | None) -> Taps:
        """A tap for every place on the first axis of the kernel."""
        x = self._padded(x) - shift.reshape(-1, *(1 for _ in self.stride))
        kernel, sizes = self.kernel, self._sizes(x)
        if places is not None:
            return self._at(x, places, sizes)
        for axis in range(1, len(kernel)):
            x = self._unfolded(x, axis, kernel[axis], sizes[axis])
        # [batch, c, rows, others..., kernel of others...] -> [c, kernel of others..., rows, batch, others...]
        others = range(3, 2 + len(kernel))
        x = x.permute(1, *range(2 + len(kernel), x.ndim), 2, 0, *others).contiguous()
        rows, per_row = x.shape[len(kernel)], prod(x.shape[len(kernel) + 1 :])
        x = x.reshape(self.groups, -1, rows, per_row)
        step, spread = self.stride[0], self.dilation[0]
        used = [slice(tap * spread, tap * spread + step * (sizes[0] - 1) + 1, step) for tap in range(kernel[0])]
        matrices = tuple(x[:, :, rows].flatten(2) for rows in used)
        adjacent = step == 1 and spread == 1 and kernel[0] > 1
        return Taps(matrices, x.flatten(2) if adjacent else None, per_row if adjacent else 0)

    def by_input(self, channels: Tensor) -> Tensor:
        """[g, inputs of a group]."""
        first, others = self.kernel[0], prod(self.kernel[1:])
        split = channels.reshape(self.groups, 1, -1, 1)
        return split.expand(-1, first, -1, others).reshape(self.groups, -1)

    def to_matrix(self, weight: Tensor) -> Tensor:
        """[g, outputs / g, kernel's first axis * inputs / g * other axes]."""
        split = weight.reshape(self.groups, -1, *weight.shape[1:])  # [g, outputs / g, inputs / g, kernel...]
        return split.transpose(2, 3).flatten(2)

    def to_weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The inverse of `to_matrix`."""
        inputs, first, *others = like.shape[1:]
        return matrix.reshape(self.groups, -1, first, inputs, *others).transpose(2, 3).reshape(like.shape)

    def cross(self, x: Tensor, values: Tensor) -> Tensor:
        """The sums of products of values of the output with all inputs, float32 [g, outputs of a group, inputs].

        It is what a gradient of the weight is, for which there is a program that needs no columns.
        """
        x, outputs, axes = self._padded(x), values.shape[1], len(self.kernel)
        like = x.new_empty(outputs, x.shape[1] // self.groups, *self.kernel)
        ways = (list(self.stride), [0] * axes, list(self.dilation), False, [0] * axes, self.groups)
        sums = torch.ops.aten.convolution_backward(values, x, like, None, *ways, [False, True, False])[1]
        return self.to_matrix(sums)

    def _padded(self, x: Tensor) -> Tensor:
        flat = [length for pair in reversed(self.padding) for length in pair]
        return functional.pad(x, flat) if any(flat) else x

    def _sizes(self, x: Tensor) -> list[int]:
        """Length of each axis of the output."""
        reach = [spread * (k - 1) for spread, k in zip(self.dilation, self.kernel, strict=True)]
        return [(n - far - 1) // step + 1 for n, far, step in zip(x.shape[2:], reach, self.stride, strict=True)]

    def _unfolded(self, x: Tensor, axis: int, kernel: int, size: int) -> Tensor:
        """A view with the output's places on an axis, and the places of the kernel on a new last axis."""
        dim, step, spread = 2 + axis, self.stride[axis], self.dilation[axis]
        shape, strides = [*x.shape, kernel], [*x.stride(), x.stride(dim) * spread]
        shape[dim], strides[dim] = size, x.stride(dim) * step
        return x.as_strided(shape, strides, x.storage_offset())

    def _at(self, x: Tensor, places: Tensor, sizes: Sequence[int]) -> Taps:
        """One tap with the columns at some places of the output."""
        kernel = self.kernel
        for axis in range(len(kernel)):
            x = self._unfolded(x, axis, kernel[axis], sizes[axis])
        at: Any = (slice(None), slice(None), *torch.unravel_index(places, tuple(sizes)))
        x = x[at]  # [batch, c, places, kernel...]
        x = x.permute(3, 1, *range(4, x.ndim), 0, 2)  # [first, c, others..., batch, places]
        x = x.reshape(kernel[0], self.groups, -1, x.shape[-2] * x.shape[-1]).transpose(0, 1)
        return Taps((x.flatten(1, 2),))


def columns(values: Tensor, form: Form, places: Tensor | None) -> Tensor:
    """Values as [channels, columns], as `taps` orders them: by the first axis, the example, then the others."""
    moved = values.movedim((form.channel, form.batch), (0, 1))  # [c, batch, ...]
    if places is not None:
        return moved.flatten(2)[:, :, places].flatten(1) if moved.ndim > 2 else moved
    return (moved.transpose(1, 2) if moved.ndim > 2 else moved).flatten(1)


def products(first: Taps, second: Taps) -> Tensor:
    """The sums of products of all inputs of two maps over all columns, float64 [g, inputs, inputs]."""
    if first is second and first.rows:
        return _products_of_rows(first)
    blocks: list[list[Tensor]] = []
    for i, one in enumerate(first.matrices):
        row = [
            blocks[j][i].mT if first is second and j < i else _product(one, two)
            for j, two in enumerate(second.matrices)
        ]
        blocks.append(row)
    return torch.cat([torch.cat(row, dim=2) for row in blocks], dim=1)


def _products_of_rows(taps: Taps) -> Tensor:
    """Products of taps that are one row apart: what two of them share is computed once, and edges are exchanged."""
    x = taps.all_rows
    assert x is not None
    count, size, length = len(taps.matrices), taps.sizes[0], taps.matrices[0].shape[2]
    total = x.new_zeros(x.shape[0], count * size, count * size, dtype=torch.float64)

    def of(start: int, distance: int, columns: int) -> Tensor:
        here = x[:, :, start : start + columns]
        offset = start + distance * taps.rows
        return _product(here, x[:, :, offset : offset + columns] if distance else here)

    for distance in range(count):
        block = of(0, distance, length)
        for tap in range(count - distance):
            here, there = (slice(t * size, (t + 1) * size) for t in (tap, tap + distance))
            total[:, here, there] = block
            total[:, there, here] = block.mT
            if tap + distance + 1 < count:
                start = tap * taps.rows
                block = block - of(start, distance, taps.rows) + of(start + length, distance, taps.rows)
    return total


SUMMED_IN_FLOAT32 = 1 << 15
"""Columns whose products are added up in float32 at most."""


LARGE = 96
"""Inputs from which on it costs less to compute only one half of their products."""


def _product(one: Tensor, two: Tensor) -> Tensor:
    """[g, a, columns] and [g, b, columns] -> float64 [g, a, b]; products in float32, sums of pieces in float64."""
    total = one.new_zeros(one.shape[0], one.shape[1], two.shape[1], dtype=torch.float64)
    edges = [*range(0, one.shape[2], SUMMED_IN_FLOAT32), one.shape[2]]
    for start, stop in pairwise(edges):
        some, others = one[:, :, start:stop], two[:, :, start:stop]
        total += _with_itself(some) if one is two else some @ others.mT
    return total


def _with_itself(values: Tensor, parts: int = 4) -> Tensor:
    """values @ values.mT, [g, a, columns] -> [g, a, a]: most is computed once, not twice."""
    size = values.shape[1]
    if size < LARGE:
        return values @ values.mT
    total, step = values.new_empty(values.shape[0], size, size), -(-size // parts)
    for start in range(0, size, step):
        here, later = slice(start, start + step), slice(start + step, None)
        total[:, here, start:] = values[:, here] @ values[:, start:].mT
        total[:, later, here] = total[:, here, later].mT
    return total


def against(values: Tensor, taps: Taps) -> Tensor:
    """The sums of products of values [g, outputs, columns] with all inputs, float64 [g, outputs, inputs]."""
    return torch.cat([_product(values, matrix) for matrix in taps.matrices], dim=2)


def sums(taps: Taps) -> Tensor:
    """The sum of every input over all columns, float64 [g, inputs]."""
    return torch.cat([matrix.sum(dim=2).double() for matrix in taps.matrices], dim=1)
