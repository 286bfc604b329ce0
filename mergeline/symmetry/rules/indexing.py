"""Operations that look elements up by their place: the indexed axis is fixed, the other axes pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mergeline.symmetry.domains import Axis
from mergeline.symmetry.labels import FIXED, AbstractTensor, Label, UnsupportedError, move
from mergeline.symmetry.movement import expand, slice_axis, unsqueeze
from mergeline.symmetry.primitives import drop, freeze, freeze_all, pointwise, tie_all
from mergeline.symmetry.rules.table import Call, rule


@rule("embedding")
def embedding(call: Call, weight: AbstractTensor, indices: AbstractTensor) -> AbstractTensor:
    """Rows of a table: which row is which matters, its features are units."""
    weight = freeze(weight, 0, "rows of an embedding are looked up")
    return _lookup(call, weight, 0, indices)


@rule("index_select")
def index_select(call: Call, x: AbstractTensor, dim: int, index: AbstractTensor) -> AbstractTensor:
    """Indices of an axis, looked up."""
    return _lookup(call, freeze(x, dim, "looked up by index"), dim % x.ndim, index)


def _lookup(call: Call, table: AbstractTensor, axis: int, indices: AbstractTensor) -> AbstractTensor:
    """The axis replaced by the axes of the index tensor."""
    indices = freeze_all(indices, "used as an index")
    table = drop(tie_all(table, axis), axis)
    for place in range(indices.ndim):
        table = unsqueeze(table, axis + place)
    shape = list(table.shape)
    shape[axis : axis + indices.ndim] = indices.shape
    labels = list(table.labels)
    labels[axis : axis + indices.ndim] = indices.labels
    activation = table.activation or indices.activation
    sources = _sources(call, table, activation)
    return AbstractTensor(table.domains, tuple(shape), tuple(labels), sources, activation)


def _sources(call: Call, table: AbstractTensor, activation: bool) -> tuple[frozenset[Axis], ...]:
    """The sources of what is looked up in a table; where inputs choose, its features become activations here."""
    if activation and not table.activation:
        call.record.writes(table.sources, call.node)
    return () if activation else table.sources


@rule("index")
def index(call: Call, x: AbstractTensor, indices: Sequence[AbstractTensor | None]) -> AbstractTensor:
    """Axes replaced by the common shape of their index tensors (numpy's advanced indexing)."""
    indexed = {axis: freeze_all(t, "used as an index") for axis, t in enumerate(indices) if t is not None}
    common = np.broadcast_shapes(*[t.shape for t in indexed.values()])
    if x.ndim - len(indexed) + len(common) != len(call.shape):
        raise UnsupportedError("a mask over several axes")
    for axis in indexed:
        x = tie_all(freeze(x, axis, "looked up by index"), axis)
    axes = sorted(indexed)
    # Neighbouring indexed axes are replaced where they stand; otherwise numpy puts the new axes first.
    place = axes[0] if axes == list(range(axes[0], axes[-1] + 1)) else 0
    activation = x.activation or any(t.activation for t in indexed.values())
    for axis in reversed(axes):
        x = drop(x, axis)
    for _ in common:
        x = unsqueeze(x, place)
    labels = list(x.labels)
    labels[place : place + len(common)] = [FIXED] * len(common)
    sources = _sources(call, x, activation)
    return AbstractTensor(x.domains, call.shape, tuple(labels), sources, activation)


def _masked(x: AbstractTensor, mask: AbstractTensor, value: AbstractTensor) -> AbstractTensor:
    """One value written wherever a mask over the leading axes is true: a choice at each place."""
    for axis in range(mask.ndim, x.ndim):
        mask = unsqueeze(mask, axis)
    return replace(pointwise([x, mask]), activation=True)


@rule("gather")
def gather(call: Call, x: AbstractTensor, dim: int, index: AbstractTensor) -> AbstractTensor:
    """At each place another index of one axis; along the other axes the place is its own."""
    dim %= x.ndim
    for axis, n in enumerate(index.shape):
        if axis != dim:
            x = slice_axis(x, axis, 0, n)
    x = tie_all(freeze(x, dim, "looked up by index"), dim)
    beside = expand(unsqueeze(drop(x, dim), dim), [n if axis == dim else -1 for axis, n in enumerate(index.shape)])
    return replace(pointwise([freeze(index, dim, "used as an index"), beside]), sources=(frozenset(),) * x.ndim)


@rule("index_put", "_unsafe_index_put")
def index_put(
    call: Call, x: AbstractTensor, indices: Sequence[AbstractTensor | None], values: AbstractTensor
) -> AbstractTensor:
    """Leading axes written at indexed places: they are fixed, the axes behind them pass."""
    if any(t is None for t in indices):
        raise UnsupportedError("only some leading axes are indexed")
    if len(indices) == 1 and call.masks and values.labels == (None,) * values.ndim:
        return _masked(x, indices[0], values)  # type: ignore[arg-type]
    # A mask stands for as many axes as it has, all other index tensors together for one axis each.
    count = sum(t.ndim if place in call.masks else 1 for place, t in enumerate(indices) if t is not None)
    for t in indices:
        freeze_all(t, "used as an index")  # type: ignore[arg-type]
    for axis in range(count):
        x = tie_all(freeze(x, axis, "written by index"), axis)
    behind = x.ndim - count
    for axis in range(max(0, values.ndim - behind)):
        values = tie_all(freeze(values, axis, "written by index"), axis)
    while values.ndim > behind:
        values = drop(values, 0)
    rest = x
    for _ in range(count):
        rest = drop(rest, 0)
    if behind:
        rest = pointwise([expand(rest, rest.shape), values])
    labels: list[Label] = [FIXED] * count
    labels += [move(label, lambda a: a.reshape((1,) * count + a.shape)) for label in rest.labels]
    return AbstractTensor(x.domains, x.shape, tuple(labels), activation=True)
