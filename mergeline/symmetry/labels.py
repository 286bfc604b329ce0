"""Labels: how each position of a tensor axis depends on the permutations of domains.

A label is a sequence of levels, outer to inner. A level has two integer arrays, `domain` and `slot`, with as many
dimensions as the tensor, that broadcast to its shape: position p of the axis is slot `slot[p]` of domain `domain[p]`.
An extent above 1 along another axis says that the permutation depends on the index there (the inner units of each
head). Moving data about is therefore the same indexing of numpy arrays.

FIXED      (): no permutation moves anything along this axis.
CONSTANT   None: the tensor does not vary along this axis, so any permutation is fine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from mergeline.symmetry.domains import NONE, Axis, Domains, Indices, Sum


class UnsupportedError(Exception):
    """A rule met a case that it does not know: its operands must be frozen."""


class Level:
    """Which domain every position belongs to, and which of its slots it takes. Never changed in place."""

    __slots__ = ("_members", "domain", "slot")

    def __init__(self, domain: Indices, slot: Indices, members: tuple[int, ...] | None = None) -> None:
        """`members` may name more domains than occur: they only decide when to look again."""
        self.domain = domain
        self.slot = slot
        self._members = members

    @property
    def members(self) -> tuple[int, ...]:
        """The domains that occur."""
        if self._members is None:
            self._members = tuple(d for d in np.unique(self.domain).tolist() if d >= 0)
        return self._members

    def move(self, function: Callable[[Indices], Indices]) -> Level:
        """The level of a tensor whose data was moved by the same function."""
        return Level(function(self.domain), function(self.slot), self._members)

    def broadcast(self, shape: Sequence[int]) -> Level:
        """The level with the extents of `shape`."""
        return Level(np.broadcast_to(self.domain, shape), np.broadcast_to(self.slot, shape), self._members)

    def take(self, index: int, axis: int) -> Level:
        """The level at one index of an axis, which keeps extent 1."""
        return Level(np.take(self.domain, [index], axis), np.take(self.slot, [index], axis), self._members)

    def same_as(self, other: Level) -> bool:
        """Whether both say the same, position by position."""
        return self is other or (np.array_equal(self.domain, other.domain) and np.array_equal(self.slot, other.slot))


Label = tuple[Level, ...] | None
FIXED: tuple[Level, ...] = ()
CONSTANT: Label = None


def move(label: Label, function: Callable[[Indices], Indices]) -> Label:
    """The label after its tensor's data was moved."""
    return tuple(level.move(function) for level in label) if label else label


def fresh_level(domains: Domains, size: int, axis: int, ndim: int) -> Level:
    """One new free domain along an axis."""
    shape = [1] * ndim
    shape[axis] = size
    domain = domains.new(size)
    return Level(np.full(shape, domain), np.arange(size).reshape(shape), (domain,))


def fresh_levels(domains: Domains, size: int, axis: int, along: int, count: int, ndim: int) -> Level:
    """New free domains along an axis, a different one for each of the `count` indices along another axis."""
    shape = [1] * ndim
    shape[axis], shape[along] = size, count
    by_index, by_slot = [1] * ndim, [1] * ndim
    by_index[along], by_slot[axis] = count, size
    domain = np.broadcast_to(domains.new_many(count, size).reshape(by_index), shape)
    return Level(domain, np.broadcast_to(np.arange(size).reshape(by_slot), shape))


def extents(label: Sequence[Level]) -> tuple[int, ...]:
    """The common broadcast shape of a label's arrays."""
    return np.broadcast_shapes(*[level.domain.shape for level in label])


def spread(label: Sequence[Level], shape: Sequence[int]) -> list[Level]:
    """All levels with the same full shape."""
    return [level.broadcast(shape) for level in label]


def resolve(domains: Domains, label: Label) -> Label:
    """The label in terms of domains that are open now: frozen ones dropped, refined ones followed down."""
    if not label or all(level.members and _is_current(domains, level) for level in label):
        return label
    return compress([finer for level in label for finer in _resolve_level(domains, level)])


def _is_current(domains: Domains, level: Level) -> bool:
    return all(map(domains.is_open, level.members))


def _resolve_level(domains: Domains, level: Level) -> list[Level]:
    if _is_current(domains, level):
        return [level]
    found, places = np.unique(level.domain, return_inverse=True)
    places = places.reshape(level.domain.shape)
    roots = np.array([domains.find(d) for d in found.tolist()])
    alive = np.array([root >= 0 and domains.reason(root) is None for root in roots.tolist()])
    roots[~alive] = NONE
    outer = roots[places]
    slot = np.where(outer < 0, 0, level.slot)
    inner, inner_slot = np.full_like(outer, NONE), np.zeros_like(slot)
    refined = False
    for number, root in enumerate(roots.tolist()):
        refinement = domains.refinement(root) if root >= 0 else None
        if refinement is None:
            continue
        refined = True
        here = places == number
        slots = slot[here]
        if isinstance(refinement, Sum):
            segment = np.searchsorted(refinement.starts, slots, side="right") - 1
            outer[here], slot[here] = refinement.segments[segment], slots - refinement.starts[segment]
        else:
            unit = slots // refinement.block
            outer[here], slot[here] = refinement.outer, unit
            inner[here], inner_slot[here] = refinement.inner[unit], slots % refinement.block
    if not refined:
        return [Level(outer, slot)] if alive.any() else []
    slot = np.where(outer < 0, 0, slot)
    levels = [Level(outer, slot)]
    if (inner >= 0).any():
        levels.append(Level(inner, np.where(inner < 0, 0, inner_slot)))
    return [finer for one in levels for finer in _resolve_level(domains, one)]


def compress(levels: Sequence[Level]) -> tuple[Level, ...]:
    """Levels moved outward, position by position, so that below a missing level there is nothing."""
    levels = [level for level in levels if level.members]
    if len(levels) < 2:
        return tuple(levels)
    shape = extents(levels)
    domain = np.stack([np.broadcast_to(level.domain, shape) for level in levels])
    if (domain >= 0).all():
        return tuple(levels)
    slot = np.stack([np.broadcast_to(level.slot, shape) for level in levels])
    order = np.argsort(domain < 0, axis=0, kind="stable")
    domain, slot = np.take_along_axis(domain, order, 0), np.take_along_axis(slot, order, 0)
    return tuple(Level(d, s) for d, s in zip(domain, slot, strict=True) if (d >= 0).any())


def shrink(label: Label, axis: int) -> Label:
    """The label of an axis without extents along other axes on which it does not depend."""
    if not label:
        return label
    shape = extents(label)
    wide = [j for j, n in enumerate(shape) if j != axis and n > 1]
    if not wide:
        return label
    levels = spread(label, shape)
    for j in wide:
        first = [level.take(0, j) for level in levels]
        if all((a.domain == b.domain).all() and (a.slot == b.slot).all() for a, b in zip(first, levels, strict=True)):
            levels = first
    return tuple(levels)


def rows(label: Label, axis: int) -> list[tuple[Level, ...]]:
    """The different one-dimensional labels that the axis has, over all indices of the other axes."""
    if not label:
        return []
    shape = extents(label)
    table = _table(label, axis, shape)
    table = np.unique(table, axis=0) if len(table) > 1 else table
    return [_row(entry) for entry in table]


def paired_rows(a: Sequence[Level], b: Sequence[Level], axis: int) -> list[tuple[tuple[Level, ...], tuple[Level, ...]]]:
    """The different pairs of one-dimensional labels that two labels of one axis have, index by index."""
    shape = extents([*a, *b])
    table = np.concatenate([_table(a, axis, shape), _table(b, axis, shape)], axis=1)
    if len(table) > 1:
        table = np.unique(table.reshape(len(table), -1), axis=0).reshape(-1, *table.shape[1:])
    return [(_row(entry[: 2 * len(a)]), _row(entry[2 * len(a) :])) for entry in table]


def _table(label: Sequence[Level], axis: int, shape: Sequence[int]) -> Indices:
    """All one-dimensional labels, [indices of other axes, 2 * levels, positions]."""
    arrays = [array for level in label for array in (level.domain, level.slot)]
    flat = [np.moveaxis(np.broadcast_to(a, shape), axis, -1).reshape(-1, shape[axis]) for a in arrays]
    return np.stack(flat, axis=1)


def _row(entry: Indices) -> tuple[Level, ...]:
    return tuple(Level(entry[i], entry[i + 1]) for i in range(0, len(entry), 2))


@dataclass(frozen=True, eq=False)
class AbstractTensor:
    """A value of the trace without its numbers: its shape, and how permutations move it.

    sources: for a value that is computed from parameters alone, the parameter axes behind each axis.
    activation: whether the model's inputs have a part in the value. node: the operation whose value this is; '' for
    values inside a rule.
    """

    domains: Domains
    shape: tuple[int, ...]
    labels: tuple[Label, ...]
    sources: tuple[frozenset[Axis], ...] = ()
    activation: bool = False
    node: str = field(default="")

    def __post_init__(self) -> None:
        # One element cannot move, and where there are none, none does.
        empty = 0 in self.shape
        labels = tuple(CONSTANT if empty or n == 1 else x for n, x in zip(self.shape, self.labels, strict=True))
        object.__setattr__(self, "labels", labels)
        sources = self.sources or (frozenset(),) * len(self.shape)
        assert len(sources) == len(self.shape), "every axis has its sources"
        object.__setattr__(self, "sources", sources)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def with_label(self, axis: int, label: Label) -> AbstractTensor:
        """The same value with another label on one axis."""
        return replace(self, labels=(*self.labels[:axis], label, *self.labels[axis + 1 :]))

    def label(self, axis: int) -> Label:
        """The label of an axis in terms of open domains."""
        return shrink(resolve(self.domains, self.labels[axis]), axis)

    @property
    def moves(self) -> bool:
        """Whether any axis is not known to be fixed or constant."""
        return any(self.labels)


def fixed(domains: Domains, shape: Sequence[int], *, activation: bool = True) -> AbstractTensor:
    """A value that no permutation moves."""
    return AbstractTensor(domains, tuple(shape), (FIXED,) * len(shape), activation=activation)


def constant(domains: Domains, shape: Sequence[int]) -> AbstractTensor:
    """A value that is the same everywhere."""
    return AbstractTensor(domains, tuple(shape), (CONSTANT,) * len(shape))


def of_data(domains: Domains, data: Tensor) -> AbstractTensor:
    """A tensor of numbers that belong to the model's code: fixed, except where it does not vary."""
    labels = tuple(CONSTANT if bool((data == data.narrow(axis, 0, 1)).all()) else FIXED for axis in range(data.ndim))
    return AbstractTensor(domains, tuple(data.shape), labels)
