"""Read families and layouts off the labels: numbers of domains become names, equal for all tensors.

The units along an axis form a tree: regions of domains, and inside each unit of a region what lies below. The trees
inside the units of one family must look alike (uniform): then the domains at each place form a new family that lies
over the enclosing ones. What is not uniform is frozen, and the extraction begins again.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from operator import itemgetter

import numpy as np

from mergeline.symmetry.domains import Axis, Domains, Indices
from mergeline.symmetry.labels import AbstractTensor, Level, extents, resolve, spread
from mergeline.symmetry.layout import (
    Blocks,
    Fixed,
    Layout,
    Segments,
    Units,
    count,
    extent,
    factors,
    families_of,
    is_counted,
    names_in,
)
from mergeline.symmetry.unify import regions

ROUNDS = 1000
"""Each round freezes a domain at least; far more than any model needs."""


class NotUniformError(Exception):
    """Units of one family differ in what lies inside them; `domains` must be frozen."""

    def __init__(self, domains: Sequence[int], why: str) -> None:
        super().__init__(why)
        self.domains = domains


class SplitUpError(Exception):
    """The domains of one family lie over fixed positions in one tensor, and one after the other in another."""

    def __init__(self, domains: Sequence[int]) -> None:
        super().__init__("units lie over fixed positions here, and one after the other there")
        self.domains = tuple(domains)


@dataclass(frozen=True)
class Fibre:
    """Units whose domain is `domains[i, j, ...]` inside the enclosing units i, j, ..; `inner` lies in each of them."""

    domains: Indices
    inner: Tree | None


@dataclass(frozen=True)
class Places:
    """`size` fixed positions, over each of which lies `inner`."""

    size: int
    inner: Tree


Tree = Fixed | Fibre | Places | tuple["Tree", ...]


@dataclass
class FoundFamily:
    """A family as it is extracted: its domains, and the parameter axes that show it, as (axis, is it an outer unit)."""

    size: int
    over: tuple[str, ...]
    domains: Indices
    axes: list[tuple[Axis, bool]]


class Extraction:
    """Families found so far (under numbers as names), and who owns which domain."""

    def __init__(self, domains: Domains, together: Collection[tuple[int, ...]] = ()) -> None:
        """`together`: domains that are one family over fixed positions where they follow one another."""
        self.domains = domains
        self.together = together
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
                over = {outer for family in families_of(done[axis]) for outer in self.families[family].over}
                for j in needs[axis]:
                    done[j] = count(done[j], over)
                self._require_one_place(done, axis, over, labels[axis])
        return tuple(done[axis] for axis in range(x.ndim))

    def _require_one_place(self, done: Mapping[int, Layout], axis: int, over: Set[str], label: Sequence[Level]) -> None:
        """What the units of an axis lie over must stand on that axis, or on exactly one other."""
        for outer in over - set(names_in(done[axis])):
            places = [part for j, layout in done.items() if j != axis for part in map(str, factors(layout) or [])]
            if places.count(outer) != 1:
                raise NotUniformError(_members(label), "units lie over two axes that look alike")

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
            enclosing += [f"#{part.size}" if isinstance(part, Fixed) else str(part) for part in parts]
        flat = [level.move(lambda a: _rows(a, [*needs, axis])) for level in spread(label, extents(label))]
        rows = math.prod(x.shape[j] for j in needs)
        trees = [self._tree([level.move(itemgetter(i)) for level in flat], n) for i in range(rows)]
        tree = _zip(trees, _members(label))
        sizes = {name: family.size for name, family in self.families.items()}
        tree = _reshape(tree, [extent(part, sizes) for part in enclosing])
        return self._named(tree, enclosing, ((name, axis), False))

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
        parts = self._over_places(_joined_fixed(parts))
        return parts[0] if len(parts) == 1 else tuple(parts)

    def _over_places(self, parts: list[Tree]) -> list[Tree]:
        """Parts whose domains belong together, as one part over fixed positions."""
        for domains in self.together:
            for start in range(len(parts) - len(domains) + 1):
                run = parts[start : start + len(domains)]
                if all(isinstance(part, Fibre) and part.domains == d for part, d in zip(run, domains, strict=True)):
                    parts[start : start + len(domains)] = [Places(len(domains), _zip(run, domains))]
                    break
        return parts

    def _named(self, tree: Tree, enclosing: Sequence[str], where: tuple[Axis, bool]) -> Layout:
        if isinstance(tree, Fixed):
            return tree
        if isinstance(tree, tuple):
            return Segments(tuple(self._named(part, enclosing, where) for part in tree))
        if isinstance(tree, Places):
            return Blocks(f"#{tree.size}", self._named(tree.inner, [*enclosing, f"#{tree.size}"], where))
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
        if any(enclosing.count(name) > 1 for name in over):
            raise NotUniformError(blamed, "units lie over two axes that look alike")
        if any(not set(self.families[name].over) <= set(over) for name in over if name in self.families):
            raise NotUniformError(blamed, "units lie over some of several nested units")
        key = (domains.shape, domains.tobytes(), tuple(over))
        if key not in self._by_key:
            if self.complete:
                raise NotUniformError(members, "units that no parameter has")
            for domain in members:
                if domain in self._owner:
                    self._refuse_second_family(domains, over, self.families[self._owner[domain]])
            name = f"f{len(self.families)}"
            self._by_key[key] = name
            self._owner.update(dict.fromkeys(members, name))
            self.families[name] = FoundFamily(self.domains.size(members[0]), tuple(over), domains, [])
        name = self._by_key[key]
        if not self.complete:
            self.families[name].axes.append(where)
        return name

    def _refuse_second_family(self, domains: Indices, over: Sequence[str], other: FoundFamily) -> None:
        """Domains belong to one family only: try them together, or else freeze what they lie over."""
        split_up = [(d, o) for d, o in ((domains, over), (other.domains, other.over)) if d.size > 1]
        if len(split_up) == 1 and all(is_counted(name) for name in split_up[0][1]):
            together = tuple(split_up[0][0].ravel().tolist())
            if together not in self.together:
                raise SplitUpError(together)
        blamed = self._above([*over, *other.over]) or domains.ravel().tolist()
        raise NotUniformError(blamed, "units shared by two families")

    def _above(self, over: Sequence[str]) -> list[int]:
        return [d for name in over if name in self.families for d in self.families[name].domains.ravel().tolist()]


def extract(
    domains: Domains, tensors: Mapping[str, AbstractTensor]
) -> tuple[Extraction, dict[str, tuple[Layout, ...]]]:
    """Layouts of all tensors in terms of common families; freezes what is not uniform."""
    together: set[tuple[int, ...]] = set()
    for _ in range(ROUNDS):
        extraction = Extraction(domains, together)
        domains.node = ""
        try:
            layouts = {name: extraction.layouts(x, name) for name, x in tensors.items()}
            extraction.complete = True
            return extraction, layouts
        except SplitUpError as fault:
            together.add(fault.domains)
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
    if isinstance(first, Places):
        places = [tree for tree in trees if isinstance(tree, Places) and tree.size == first.size]
        if len(places) < len(trees):
            raise NotUniformError(blamed, "units differ in what lies inside them")
        return Places(first.size, _zip([tree.inner for tree in places], blamed))
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
    if isinstance(tree, Places):
        return Places(tree.size, _reshape(tree.inner, lead))
    domains = tree.domains.reshape([*lead, *tree.domains.shape[1:]])
    return Fibre(domains, None if tree.inner is None else _reshape(tree.inner, lead))
