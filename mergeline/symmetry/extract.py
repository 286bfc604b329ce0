"""Read families and layouts off the labels: numbers of domains become names, equal for all tensors.

The units along an axis form a tree: regions of domains, and inside each unit of a region what lies below. The trees
inside the units of one family must look alike (uniform): then the domains at each place form a new family that lies
over the enclosing ones. What is not uniform is frozen, and the extraction begins again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np

from mergeline.symmetry.domains import Axis, Domains, Indices
from mergeline.symmetry.labels import AbstractTensor, Level, extents, resolve, spread
from mergeline.symmetry.layout import Blocks, Fixed, Layout, Segments, Units, factors, is_fixed_name
from mergeline.symmetry.unify import regions

ROUNDS = 1000
"""Each round freezes a domain at least; far more than any model needs."""


class NotUniformError(Exception):
    """Units of one family differ in what lies inside them; `domains` must be frozen."""

    def __init__(self, domains: Sequence[int], why: str) -> None:
        super().__init__(why)
        self.domains = domains


@dataclass(frozen=True)
class Fibre:
    """Units whose domain is `domains[i, j, ...]` inside the enclosing units i, j, ..; `inner` lies in each of them."""

    domains: Indices
    inner: Tree | None


Tree = Fixed | Fibre | tuple["Tree", ...]


@dataclass
class FoundFamily:
    """A family as it is extracted: its domains, and the parameter axes that show it, as (axis, is it an outer unit)."""

    size: int
    over: tuple[str, ...]
    domains: Indices
    axes: list[tuple[Axis, bool]]


class Extraction:
    """Families found so far (under numbers as names), and who owns which domain."""

    def __init__(self, domains: Domains) -> None:
        self.domains = domains
        self.complete = False  # set when all parameters are read: activations bring no new families
        self.families: dict[str, FoundFamily] = {}
        self._by_key: dict[object, str] = {}
        self._owner: dict[int, str] = {}

    def layouts(self, x: AbstractTensor, name: str) -> tuple[Layout, ...]:
        """The layouts of all axes. Raises NotUniformError."""
        labels = [x.label(axis) or () for axis in range(x.ndim)]
        needs = [
            {j for j, n in enumerate(extents(label)) if j != axis and n > 1} if label else set()
            for axis, label in enumerate(labels)
        ]
        done: dict[int, Layout] = {}
        while len(done) < x.ndim:
            ready = [axis for axis in range(x.ndim) if axis not in done and needs[axis] <= set(done)]
            if not ready:
                axis = next(axis for axis in range(x.ndim) if axis not in done)
                raise NotUniformError(_members(labels[axis]), "axes depend on each other in a circle")
            for axis in ready:
                done[axis] = self._layout(x, axis, labels[axis], sorted(needs[axis]), done, name)
        return tuple(done[axis] for axis in range(x.ndim))

    def _layout(
        self,
        x: AbstractTensor,
        axis: int,
        label: Sequence[Level],
        needs: Sequence[int],
        done: Mapping[int, Layout],
        name: str,
    ) -> Layout:
        n = x.shape[axis]
        if not label:
            return Fixed(n)
        enclosing: list[str] = []
        for j in needs:
            parts = factors(done[j])
            if parts is None:
                raise NotUniformError(_members(label), "units that depend on a concatenated axis")
            enclosing += [str(part) for part in parts]
        flat = [level.move(lambda a: _rows(a, [*needs, axis])) for level in spread(label, extents(label))]
        count = math.prod(x.shape[j] for j in needs)
        trees = [self._tree([level.move(itemgetter(i)) for level in flat], n) for i in range(count)]
        tree = _zip(trees, _members(label))
        shape = [int(part[1:]) if is_fixed_name(part) else self.families[part].size for part in enclosing]
        return self._named(_reshape(tree, shape), enclosing, ((name, axis), False))

    def _tree(self, row: Sequence[Level], n: int) -> Tree:
        """The tree of a one-dimensional label."""
        row = resolve(self.domains, tuple(row)) or ()
        if not row:
            return Fixed(n)
        parts: list[Tree] = []
        for region in regions(self.domains, row[0]):
            if region.domain < 0:
                parts.append(Fixed(region.stop - region.start))
            elif region.run == 0:
                raise NotUniformError([region.domain], "units are not in order")
            elif region.run == 1:
                parts.append(Fibre(np.array(region.domain), None))
            else:
                windows = [slice(start, start + region.run) for start in range(region.start, region.stop, region.run)]
                inside = [self._tree([level.move(itemgetter(w)) for level in row[1:]], region.run) for w in windows]
                parts.append(Fibre(np.array(region.domain), _zip(inside, [region.domain])))
        parts = _joined_fixed(parts)
        return parts[0] if len(parts) == 1 else tuple(parts)

    def _named(self, tree: Tree, enclosing: Sequence[str], where: tuple[Axis, bool]) -> Layout:
        if isinstance(tree, Fixed):
            return tree
        if isinstance(tree, tuple):
            return Segments(tuple(self._named(part, enclosing, where) for part in tree))
        if tree.inner is None:
            return Units(self._family(tree.domains, enclosing, where))
        family = self._family(tree.domains, enclosing, (where[0], True))
        return Blocks(family, self._named(tree.inner, [*enclosing, family], where))

    def _family(self, domains: Indices, enclosing: Sequence[str], where: tuple[Axis, bool]) -> str:
        """The family with these domains, one for each combination of the enclosing units."""
        over: list[str] = []
        for place in reversed(range(domains.ndim)):
            if (domains == np.take(domains, [0], place)).all():
                domains = np.take(domains, 0, place)
            else:
                over.insert(0, enclosing[place])
        members = domains.ravel().tolist()
        blamed = self._above(over) or members
        if len(set(members)) < len(members):
            raise NotUniformError(blamed, "units of several outer units are tied")
        if len({name for name in over if is_fixed_name(name)}) < sum(map(is_fixed_name, over)) or any(
            enclosing.count(name) > 1 for name in over
        ):
            raise NotUniformError(blamed, "units lie over two axes of the same kind")
        if any(not set(self.families[name].over) <= set(over) for name in over if name in self.families):
            raise NotUniformError(blamed, "units lie over some of several nested units")
        key = (domains.shape, domains.tobytes(), tuple(over))
        if key not in self._by_key:
            if self.complete:
                raise NotUniformError(members, "units that no parameter has")
            for domain in members:
                if domain in self._owner:
                    other = self.families[self._owner[domain]].over
                    raise NotUniformError(self._above([*over, *other]) or members, "units shared by two families")
            name = f"f{len(self.families)}"
            self._by_key[key] = name
            self._owner.update(dict.fromkeys(members, name))
            self.families[name] = FoundFamily(self.domains.size(members[0]), tuple(over), domains, [])
        name = self._by_key[key]
        if not self.complete:
            self.families[name].axes.append(where)
        return name

    def _above(self, over: Sequence[str]) -> list[int]:
        return [d for name in over if name in self.families for d in self.families[name].domains.ravel().tolist()]


def extract(
    domains: Domains, tensors: Mapping[str, AbstractTensor]
) -> tuple[Extraction, dict[str, tuple[Layout, ...]]]:
    """Layouts of all tensors in terms of common families; freezes what is not uniform."""
    for _ in range(ROUNDS):
        extraction = Extraction(domains)
        domains.node = ""
        try:
            layouts = {name: extraction.layouts(x, name) for name, x in tensors.items()}
            extraction.complete = True
            return extraction, layouts
        except NotUniformError as fault:
            for domain in fault.domains:
                domains.freeze(domain, str(fault))
    raise AssertionError("every round freezes a domain")


def _members(label: Sequence[Level]) -> list[int]:
    return [domain for level in label for domain in level.members]


def _rows(a: Indices, axes: Sequence[int]) -> Indices:
    """[combinations of the leading axes, positions of the last]; other axes have extent 1."""
    rest = [axis for axis in range(a.ndim) if axis not in axes]
    return a.transpose([*rest, *axes]).reshape(-1, a.shape[axes[-1]])


def _joined_fixed(parts: Sequence[Tree]) -> list[Tree]:
    """Neighbouring fixed stretches as one."""
    joined: list[Tree] = []
    for part in parts:
        before = joined[-1] if joined else None
        if isinstance(part, Fixed) and isinstance(before, Fixed):
            joined[-1] = Fixed(before.size + part.size)
        else:
            joined.append(part)
    return joined


def _zip(trees: Sequence[Tree], blamed: Sequence[int]) -> Tree:
    """Trees of equal form as one, with the domains at each place stacked along a new first axis."""
    first = trees[0]
    if isinstance(first, Fixed):
        if any(tree != first for tree in trees):
            raise NotUniformError(blamed, "units differ in what is fixed inside them")
        return first
    if isinstance(first, tuple):
        if any(not isinstance(tree, tuple) or len(tree) != len(first) for tree in trees):
            raise NotUniformError(blamed, "units differ in what lies inside them")
        return tuple(_zip(parts, blamed) for parts in zip(*trees, strict=True))
    fibres = [tree for tree in trees if isinstance(tree, Fibre) and (tree.inner is None) == (first.inner is None)]
    if len(fibres) < len(trees):
        raise NotUniformError(blamed, "units differ in what lies inside them")
    inner = None if first.inner is None else _zip([fibre.inner for fibre in fibres if fibre.inner is not None], blamed)
    return Fibre(np.stack([fibre.domains for fibre in fibres]), inner)


def _reshape(tree: Tree, lead: Sequence[int]) -> Tree:
    """The first axis of all domain arrays unfolded into one axis for each enclosing family."""
    if isinstance(tree, Fixed):
        return tree
    if isinstance(tree, tuple):
        return tuple(_reshape(part, lead) for part in tree)
    domains = tree.domains.reshape([*lead, *tree.domains.shape[1:]])
    return Fibre(domains, None if tree.inner is None else _reshape(tree.inner, lead))
