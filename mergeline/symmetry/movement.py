"""The third primitive: operations that only move data (permute, slice, concatenate, view, expand).

Labels are arrays that lie beside the data, so each is the same movement of numpy arrays. Where a movement separates
units that a permutation could mix (a cut, a view that splits an axis), the domains are refined first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mergeline.symmetry.domains import NONE, Indices
from mergeline.symmetry.labels import (
    CONSTANT,
    FIXED,
    AbstractTensor,
    Label,
    Level,
    UnsupportedError,
    compress,
    fresh_level,
    fresh_levels,
    move,
    resolve,
    rows,
    shrink,
)
from mergeline.symmetry.primitives import drop, freeze, tie, tie_all, with_ndim
from mergeline.symmetry.unify import cut, freeze_row, prepare_split


def permute(x: AbstractTensor, order: Sequence[int]) -> AbstractTensor:
    """Axes in another order."""
    order = [axis % x.ndim for axis in order]
    return AbstractTensor(
        x.domains,
        tuple(x.shape[axis] for axis in order),
        tuple(move(x.labels[axis], lambda a: a.transpose(order)) for axis in order),
        tuple(x.sources[axis] for axis in order),
        x.activation,
    )


def unsqueeze(x: AbstractTensor, axis: int) -> AbstractTensor:
    """A new axis of size 1."""
    axis %= x.ndim + 1
    labels = [move(label, lambda a: np.expand_dims(a, axis)) for label in x.labels]
    return AbstractTensor(
        x.domains,
        (*x.shape[:axis], 1, *x.shape[axis:]),
        (*labels[:axis], CONSTANT, *labels[axis:]),
        (*x.sources[:axis], frozenset(), *x.sources[axis:]),
        x.activation,
    )


def squeeze(x: AbstractTensor, axes: Sequence[int]) -> AbstractTensor:
    """Without those of the axes that have size 1."""
    for axis in sorted({axis % x.ndim for axis in axes}, reverse=True):
        if x.shape[axis] == 1:
            x = drop(x, axis)
    return x


def expand(x: AbstractTensor, shape: Sequence[int]) -> AbstractTensor:
    """Axes of size 1 repeated (-1 keeps an axis): the result does not vary along them."""
    x = with_ndim(x, len(shape))
    shape = tuple(old if new == -1 else new for old, new in zip(x.shape, shape, strict=True))
    labels = [label if old == new else CONSTANT for label, old, new in zip(x.labels, x.shape, shape, strict=True)]
    return AbstractTensor(x.domains, shape, tuple(labels), x.sources, x.activation)


def slice_axis(x: AbstractTensor, axis: int, start: int | None, stop: int | None, step: int = 1) -> AbstractTensor:
    """Python's x[start:stop:step] along one axis: no permutation may cross the edges."""
    axis %= x.ndim
    n = x.shape[axis]
    start, stop, step = slice(start, stop, step).indices(n)
    stop = max(stop, start)
    if (start, stop, step) == (0, n, 1):
        return replace(x, node="")
    if step != 1:
        return _strided_slice(x, axis, start, stop, step)
    for edge in (start, stop):
        for row in rows(x.label(axis), axis):
            cut(x.domains, row, edge)
    window = tuple(slice(start, stop) if j == axis else slice(None) for j in range(x.ndim))

    def take(a: Indices) -> Indices:
        return a[window] if a.shape[axis] > 1 else a

    labels = [shrink(move(resolve(x.domains, label), take), j) for j, label in enumerate(x.labels)]
    shape = (*x.shape[:axis], stop - start, *x.shape[axis + 1 :])
    return AbstractTensor(x.domains, shape, tuple(labels), x.sources, x.activation)


def _strided_slice(x: AbstractTensor, axis: int, start: int, stop: int, step: int) -> AbstractTensor:
    """Every `step`-th position: a view as (blocks, step) where that is exact, otherwise nothing may move."""
    n = x.shape[axis]
    if x.labels[axis] and start < step and n % step == 0 and stop == n:
        return select(split(x, axis, n // step, step), axis + 1, start)
    x = tie_all(freeze(x, axis, "a slice with steps"), axis)
    shape = (*x.shape[:axis], len(range(start, stop, step)), *x.shape[axis + 1 :])
    return AbstractTensor(x.domains, shape, x.labels, x.sources, x.activation)


def select(x: AbstractTensor, axis: int, index: int) -> AbstractTensor:
    """One index of an axis, which is dropped."""
    axis %= x.ndim
    index %= x.shape[axis]
    return drop(slice_axis(x, axis, index, index + 1), axis)


def concatenate(tensors: Sequence[AbstractTensor], axis: int) -> AbstractTensor:
    """One after the other: units of each part stay within it."""
    tensors = [x for x in tensors if 0 not in x.shape] or tensors[:1]
    ndim = tensors[0].ndim
    axis %= ndim
    if len(tensors) == 1:
        return replace(tensors[0], node="")
    labels = []
    for j in range(ndim):
        if j == axis:
            parts = [_varying(x, axis).labels[axis] for x in tensors]
            parts = [resolve(x.domains, label) for x, label in zip(tensors, parts, strict=True)]
        else:
            parts = _labels_beside(tensors, j, axis)
        labels.append(_joined(parts, [x.shape[axis] for x in tensors], axis, j, ndim))
    shape = list(tensors[0].shape)
    shape[axis] = sum(x.shape[axis] for x in tensors)
    sources = tuple(frozenset().union(*[x.sources[j] for x in tensors]) for j in range(ndim))
    activation = any(x.activation for x in tensors)
    return AbstractTensor(tensors[0].domains, tuple(shape), tuple(labels), sources, activation)


def _varying(x: AbstractTensor, axis: int) -> AbstractTensor:
    """A tensor that is constant along an axis, with a permutation of that axis that nothing else uses yet."""
    if x.labels[axis] is CONSTANT and x.shape[axis] > 1:
        return x.with_label(axis, (fresh_level(x.domains, x.shape[axis], axis, x.ndim),))
    return x


def _labels_beside(tensors: Sequence[AbstractTensor], j: int, axis: int) -> list[Label]:
    """Labels of an axis other than the concatenated one; it may depend on the place along that one afterwards."""
    parts = [x.label(j) for x in tensors]
    if FIXED in parts:
        for x, label in zip(tensors, parts, strict=True):
            freeze_row(x.domains, label or (), "concatenated with a fixed axis")
        return [FIXED] * len(parts)
    if CONSTANT in parts and any(parts):
        # Any permutation suits the constant parts: take the one of a part that varies.
        k = next(k for k, label in enumerate(parts) if label)
        parts[k] = tie(tensors[k], j, axis).labels[j]
        parts = [parts[k] if label is CONSTANT else label for label in parts]
    return parts


def _joined(parts: Sequence[Label], widths: Sequence[int], axis: int, j: int, ndim: int) -> Label:
    """Labels of axis j of all parts, joined along `axis`."""
    if all(label is CONSTANT for label in parts) and j != axis:
        return CONSTANT
    if not any(parts):
        return FIXED
    shape = np.broadcast_shapes(
        *[[n if k != axis else 1 for k, n in enumerate(level.domain.shape)] for label in parts for level in label or ()]
    )
    levels = []
    for depth in range(max(len(label or ()) for label in parts)):
        pieces = []
        for label, width in zip(parts, widths, strict=True):
            target = [*shape[:axis], width, *shape[axis + 1 :]]
            if label and depth < len(label):
                pieces.append(label[depth].broadcast(target))
            else:
                pieces.append(Level(np.full(target, NONE), np.zeros(target, dtype=np.int64)))
        levels.append(
            Level(
                np.concatenate([piece.domain for piece in pieces], axis),
                np.concatenate([piece.slot for piece in pieces], axis),
            )
        )
    return shrink(compress(levels), j)


def merge(x: AbstractTensor, axis: int) -> AbstractTensor:
    """Axes `axis` and `axis + 1` as one: outer units become blocks, inner units move inside each."""
    outer, inner = x.shape[axis : axis + 2]
    x = tie(x, axis, axis + 1)
    first, second = x.labels[axis], x.labels[axis + 1]
    constant = first is CONSTANT and second is CONSTANT
    if first is CONSTANT and outer > 1:
        first = (fresh_level(x.domains, outer, axis, x.ndim),)
    if second is CONSTANT and inner > 1:
        # Copies inside one outer unit may change places among themselves.
        copies = fresh_levels(x.domains, inner, axis + 1, axis, outer, x.ndim) if first else None
        second = (copies or fresh_level(x.domains, inner, axis + 1, x.ndim),)

    def flatten(a: Indices, always: bool = False) -> Indices:
        shape = [*a.shape]
        wide = always or shape[axis] > 1 or shape[axis + 1] > 1
        if wide:
            shape[axis : axis + 2] = outer, inner
            a = np.broadcast_to(a, shape)
        return a.reshape([*shape[:axis], outer * inner if wide else 1, *shape[axis + 2 :]])

    labels = [move(label, flatten) for label in x.labels]
    levels = [level.move(lambda a: flatten(a, always=True)) for level in (*(first or ()), *(second or ()))]
    merged = CONSTANT if constant else shrink(compress(levels), axis)
    return AbstractTensor(
        x.domains,
        (*x.shape[:axis], outer * inner, *x.shape[axis + 2 :]),
        (*labels[:axis], merged, *labels[axis + 2 :]),
        (*x.sources[:axis], x.sources[axis] | x.sources[axis + 1], *x.sources[axis + 2 :]),
        x.activation,
    )


def split(x: AbstractTensor, axis: int, outer: int, inner: int) -> AbstractTensor:
    """One axis as two: permutations move whole blocks of `inner` positions, or move inside a block."""
    assert outer * inner == x.shape[axis], "a split keeps the number of elements"
    for row in rows(x.label(axis), axis):
        prepare_split(x.domains, row, inner)

    def unflatten(a: Indices) -> Indices:
        new = (outer, inner) if a.shape[axis] > 1 else (1, 1)
        return a.reshape((*a.shape[:axis], *new, *a.shape[axis + 1 :]))

    labels: list[Label] = []
    for j in range(x.ndim):
        label = move(x.label(j), unflatten)
        if j != axis:
            labels.append(shrink(label, j if j < axis else j + 1))
        elif label:
            labels += _outer_and_inner(label, axis)
        else:
            labels += [label, label]
    return AbstractTensor(
        x.domains,
        (*x.shape[:axis], outer, inner, *x.shape[axis + 1 :]),
        tuple(labels),
        (*x.sources[:axis], x.sources[axis], x.sources[axis], *x.sources[axis + 1 :]),
        x.activation,
    )


def _outer_and_inner(label: Sequence[Level], axis: int) -> tuple[Label, Label]:
    """The levels of a split axis that move whole blocks (constant inside each block), and those that move inside."""
    outer, inner = [], []
    for level in label:
        head = level.take(0, axis + 1)
        whole = ((level.domain == head.domain) & (level.slot == head.slot)).all(axis + 1, keepdims=True)
        outer.append(Level(np.where(whole, head.domain, NONE), np.where(whole, head.slot, 0)))
        inner.append(Level(np.where(whole, NONE, level.domain), np.where(whole, 0, level.slot)))
    return shrink(compress(outer), axis), shrink(compress(inner), axis + 1)


def view(x: AbstractTensor, shape: Sequence[int]) -> AbstractTensor:
    """The same elements in order under another shape, by merging and splitting the smallest groups of axes."""
    shape = tuple(shape)
    if math.prod(shape) != math.prod(x.shape) or 0 in shape:
        raise UnsupportedError(f"a view of {list(x.shape)} as {list(shape)}")
    target = [n for n in shape if n != 1]
    x = squeeze(x, range(x.ndim)) if x.ndim else x
    axis = place = 0
    while place < len(target):
        last, end = axis + 1, place + 1
        have, want = x.shape[axis], target[place]
        while have != want:
            if have < want:
                have, last = have * x.shape[last], last + 1
            else:
                want, end = want * target[end], end + 1
        for _ in range(last - axis - 1):
            x = merge(x, axis)
        for n in target[place : end - 1]:
            have //= n
            x = split(x, axis, n, have)
            axis += 1
        axis, place = axis + 1, end
    for axis, n in enumerate(shape):
        if n == 1:
            x = unsqueeze(x, axis)
    return x
