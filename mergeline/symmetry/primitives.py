"""Two of the four primitives that every operation reduces to: pointwise, and normalise / reduce."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mergeline.symmetry.labels import (
    CONSTANT,
    FIXED,
    AbstractTensor,
    Label,
    extents,
    move,
    paired_rows,
    resolve,
    shrink,
    spread,
)
from mergeline.symmetry.unify import MEETS_FIXED, freeze_row, unify


def freeze(x: AbstractTensor, axis: int, why: str) -> AbstractTensor:
    """Allow no permutation along an axis."""
    axis %= x.ndim
    label = x.labels[axis]
    if label:
        freeze_row(x.domains, label, why)
    return x.with_label(axis, FIXED)


def freeze_all(x: AbstractTensor, why: str) -> AbstractTensor:
    """Allow no permutation at all."""
    for axis in range(x.ndim):
        x = freeze(x, axis, why)
    return x


def tie(x: AbstractTensor, axis: int, along: int) -> AbstractTensor:
    """Make the permutation of an axis the same for every index along another axis."""
    label = x.label(axis)
    if not label or extents(label)[along] == 1:
        return x.with_label(axis, label)
    levels = spread(label, extents(label))
    first = tuple(level.take(0, along) for level in levels)
    # One comparison for each different slice: slices of many indices are mostly alike.
    table = np.stack([np.moveaxis(a, along, 0) for level in levels for a in (level.domain, level.slot)], axis=1)
    _, different = np.unique(table.reshape(len(table), -1), axis=0, return_index=True)
    for index in sorted(different.tolist()):
        _unify_labels(x, first, tuple(level.take(index, along) for level in levels), axis)
    return x.with_label(axis, shrink(resolve(x.domains, first), axis))


def tie_all(x: AbstractTensor, along: int) -> AbstractTensor:
    """Make no other axis depend on the index along this one."""
    along %= x.ndim
    for axis in range(x.ndim):
        if axis != along:
            x = tie(x, axis, along)
    return x


def _unify_labels(x: AbstractTensor, a: Label, b: Label, axis: int) -> None:
    """Make two labels of an axis denote the same permutation, at every index of the other axes."""
    if a is b or (not a and not b):
        return
    if not a or not b:
        freeze_row(x.domains, a or b or (), MEETS_FIXED)
        return
    if len(a) == len(b) and all(p.same_as(q) for p, q in zip(a, b, strict=True)):
        return
    for left, right in paired_rows(a, b, axis):
        unify(x.domains, left, right)


def with_ndim(x: AbstractTensor, ndim: int) -> AbstractTensor:
    """The tensor with leading axes of size 1 added, as broadcasting does."""
    missing = ndim - x.ndim
    if missing == 0:
        return x
    return AbstractTensor(
        x.domains,
        (1,) * missing + x.shape,
        (CONSTANT,) * missing + tuple(move(label, lambda a: a.reshape((1,) * missing + a.shape)) for label in x.labels),
        (frozenset(),) * missing + x.sources,
        x.activation,
    )


def pointwise(tensors: Sequence[AbstractTensor]) -> AbstractTensor:
    """Any function of the elements at one place, with broadcasting: all operands move alike."""
    ndim = max(x.ndim for x in tensors)
    shape = np.broadcast_shapes(*[x.shape for x in tensors])
    tensors = [with_ndim(x, ndim) for x in tensors]
    activation = any(x.activation for x in tensors)
    labels: list[Label] = []
    for axis, n in enumerate(shape):
        varying = [x for x in tensors if x.shape[axis] == n > 1 and x.labels[axis] is not CONSTANT]
        for x in varying[1:]:
            _unify_labels(x, varying[0].labels[axis], x.labels[axis], axis)
        # All are equal now; the one that depends on the fewest indices is the cheapest to carry on.
        candidates = [x.label(axis) or FIXED for x in varying]
        labels.append(min(candidates, key=lambda label: sum(level.domain.size for level in label), default=CONSTANT))
    return AbstractTensor(
        tensors[0].domains,
        shape,
        tuple(labels),
        ()
        if activation
        else tuple(
            frozenset().union(*[x.sources[axis] for x in tensors if x.shape[axis] == n]) for axis, n in enumerate(shape)
        ),
        activation,
    )


def normalise(x: AbstractTensor, axes: Sequence[int]) -> AbstractTensor:
    """A function of everything along some axes that keeps the shape and does not care for the order there."""
    axes = sorted({axis % x.ndim for axis in axes})
    for axis in range(x.ndim):
        if axis not in axes:
            for along in axes:
                x = tie(x, axis, along)
    return replace(x, node="")


def reduce(x: AbstractTensor, axes: Sequence[int], *, keepdim: bool = False) -> AbstractTensor:
    """A function of everything along some axes that does not care for the order there, and drops them."""
    axes = sorted({axis % x.ndim for axis in axes})
    x = normalise(x, axes)
    if keepdim:
        return AbstractTensor(
            x.domains,
            tuple(1 if axis in axes else n for axis, n in enumerate(x.shape)),
            tuple(CONSTANT if axis in axes else label for axis, label in enumerate(x.labels)),
            tuple(frozenset() if axis in axes else source for axis, source in enumerate(x.sources)),
            x.activation,
        )
    for axis in reversed(axes):
        x = drop(x, axis)
    return x


def drop(x: AbstractTensor, axis: int) -> AbstractTensor:
    """The tensor at index 0 of an axis on which no other label depends."""
    keep = [j for j in range(x.ndim) if j != axis]
    return AbstractTensor(
        x.domains,
        tuple(x.shape[j] for j in keep),
        tuple(move(x.labels[j], lambda a: np.take(a, 0, axis)) for j in keep),
        tuple(x.sources[j] for j in keep),
        x.activation,
    )
