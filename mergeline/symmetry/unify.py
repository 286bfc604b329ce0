"""Make one-dimensional labels agree: cut, refine, unite or freeze domains until both denote the same permutation.

A label is read as *regions*: consecutive positions that run through all slots of one domain, each slot `run` positions
wide. Two regions over the same positions agree when their runs are equal (unite the domains); where one run is a
multiple of the other, the finer domain becomes a product; where regions end at different places, domains become sums.
Whatever does not fit is frozen, which is always sound. Each step refines, unites or freezes, so the loops end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter

import numpy as np

from mergeline.symmetry.domains import NONE, Domains
from mergeline.symmetry.labels import Level, UnsupportedError, resolve

Row = Sequence[Level]
"""A label with arrays of one dimension."""

STEPS = 1000
"""Far above what any label needs; reached only by a fault in this file."""

MEETS_FIXED = "meets a fixed axis"


@dataclass(frozen=True)
class Region:
    """Positions [start, stop) that run through `domain`, each slot `run` wide.

    domain NONE: fixed positions. run 0: the slots do not appear whole and in order (irregular).
    """

    start: int
    stop: int
    domain: int
    run: int


def regions(domains: Domains, level: Level) -> list[Region]:
    """The outermost level of a resolved row, as regions from left to right."""
    domain, slot = level.domain, level.slot
    starts = np.flatnonzero(np.append(True, (domain[1:] != domain[:-1]) | (slot[1:] != slot[:-1])))
    lengths = np.diff(np.append(starts, len(domain)))
    domain, slot = domain[starts], slot[starts]
    found, k = [], 0
    while k < len(starts):
        start, length, d = int(starts[k]), int(lengths[k]), int(domain[k])
        slots = domains.size(d) if d >= 0 else 1
        whole = slice(k, k + slots)
        if d < 0:
            found.append(Region(start, start + length, NONE, 1))
        elif (
            k + slots <= len(starts)
            and (domain[whole] == d).all()
            and (slot[whole] == np.arange(slots)).all()
            and (lengths[whole] == length).all()
        ):
            found.append(Region(start, start + length * slots, d, length))
            k += slots - 1
        else:
            found.append(Region(start, start + length, d, 0))
        k += 1
    return found


def freeze_row(domains: Domains, row: Row, why: str, where: slice = slice(None)) -> None:
    """Freeze every domain that occurs in a part of a row."""
    for level in row:
        for domain in np.unique(level.domain[where]).tolist():
            domains.freeze(domain, why)


def unify(domains: Domains, a: Row, b: Row) -> None:
    """Make two rows of one length denote the same permutation."""
    for _ in range(STEPS):
        a, b = resolve(domains, tuple(a)) or (), resolve(domains, tuple(b)) or ()
        if len(a) == len(b) and all(x.same_as(y) for x, y in zip(a, b, strict=True)):
            return
        if not a or not b:
            freeze_row(domains, a or b, MEETS_FIXED)
            return
        left, right = regions(domains, a[0]), regions(domains, b[0])
        if _freeze_irregular(domains, left + right) or _cut_at_common_edges(domains, left, right):
            continue
        pairs = list(_overlaps(left, right))
        changes = [_match(domains, a, b, x, y, where) for x, y, where in pairs]
        if any(changes):
            continue
        before = domains.version
        _unify_inside(domains, a[1:], b[1:], [(x, where) for x, _, where in pairs])
        if domains.version == before:
            return
    raise UnsupportedError("labels that do not come to agree")


def _freeze_irregular(domains: Domains, found: Sequence[Region]) -> bool:
    irregular = [region for region in found if region.run == 0]
    for region in irregular:
        domains.freeze(region.domain, "units are not in order")
    return bool(irregular)


def _cut_at_common_edges(domains: Domains, left: Sequence[Region], right: Sequence[Region]) -> bool:
    """Cut every domain where a region of the other label begins or ends inside it."""
    edges = sorted({edge for region in (*left, *right) for edge in (region.start, region.stop)})
    done: set[int] = set()
    for region in (*left, *right):
        inside = [edge for edge in edges if region.start < edge < region.stop]
        if region.domain >= 0 and inside and region.domain not in done:
            done.add(region.domain)
            _cut_region(domains, region, inside)
    return bool(done)


def _cut_region(domains: Domains, region: Region, edges: Sequence[int]) -> None:
    """Refine a region's domain so that segments end at the given positions; a slot that is cut through stands alone."""
    cuts: set[int] = set()
    for edge in edges:
        slot, rest = divmod(edge - region.start, region.run)
        cuts |= {slot} if rest == 0 else {slot, slot + 1}
    domains.refine_sum(region.domain, cuts)


def _overlaps(left: Sequence[Region], right: Sequence[Region]) -> Iterator[tuple[Region, Region, slice]]:
    """Pairs of regions over the same positions, where at least one has units."""
    edges = sorted({edge for region in (*left, *right) for edge in (region.start, region.stop)})
    i = j = 0
    for start, stop in pairwise(edges):
        while left[i].stop <= start:
            i += 1
        while right[j].stop <= start:
            j += 1
        if left[i].domain >= 0 or right[j].domain >= 0:
            yield left[i], right[j], slice(start, stop)


def _match(domains: Domains, a: Row, b: Row, x: Region, y: Region, where: slice) -> bool:
    """Bring the domains of two overlapping regions one step closer; whether anything changed."""
    if x.domain < 0 or y.domain < 0:
        freeze_row(domains, b if x.domain < 0 else a, MEETS_FIXED, where)
        return True
    first, second = domains.find(x.domain), domains.find(y.domain)
    if not domains.is_open(first) or not domains.is_open(second):
        return True  # an earlier pair changed them: look again
    if x.run == y.run:
        if first == second:
            return False
        domains.unite(first, second)
    elif x.run % y.run == 0:
        domains.refine_product(second, x.run // y.run)
    elif y.run % x.run == 0:
        domains.refine_product(first, y.run // x.run)
    else:
        for domain in (first, second):
            domains.freeze(domain, "blocks of different widths cross")
    return True


def _unify_inside(domains: Domains, a: Row, b: Row, pairs: Sequence[tuple[Region, slice]]) -> None:
    """Unify what lies inside every slot of regions whose outer level agrees already."""
    if not a and not b:
        return
    seen = set()
    for region, where in pairs:
        if region.run == 1:
            continue
        for start in range(where.start, where.stop, region.run):
            inside = itemgetter(slice(start, start + region.run))
            x, y = [level.move(inside) for level in a], [level.move(inside) for level in b]
            key = tuple(array.tobytes() for level in (*x, *y) for array in (level.domain, level.slot))
            if (len(x), key) not in seen:
                seen.add((len(x), key))
                unify(domains, x, y)


def cut(domains: Domains, row: Row, position: int) -> None:
    """Refine domains so that no permutation moves anything across a position."""
    for _ in range(STEPS):
        row = resolve(domains, tuple(row)) or ()
        crossing = [
            region
            for region in (regions(domains, row[0]) if row else ())
            if region.domain >= 0 and region.start < position < region.stop
        ]
        if not crossing:
            return
        for region in crossing:
            if region.run == 0:
                domains.freeze(region.domain, "units that are not in order are cut")
            else:
                _cut_region(domains, region, [position])
    raise UnsupportedError("a cut that does not come to an end")


def prepare_split(domains: Domains, row: Row, block: int) -> None:
    """Refine domains so that permutations move whole blocks of `block` positions, or move inside a block only."""
    for _ in range(STEPS):
        row = resolve(domains, tuple(row)) or ()
        if not row or not _refine_for_blocks(domains, row, 0, block):
            return
    raise UnsupportedError("a view that does not come to an end")


def _refine_for_blocks(domains: Domains, row: Row, base: int, block: int) -> bool:
    """One round of `prepare_split` on a row that begins at position `base`; whether anything changed."""
    changed = False
    for region in regions(domains, row[0]):
        start, stop = base + region.start, base + region.stop
        if region.domain < 0 or start // block == (stop - 1) // block:
            continue
        if not domains.is_open(region.domain):
            changed = True
        elif region.run == 0:
            domains.freeze(region.domain, "units that are not in order are split")
            changed = True
        elif region.run % block == 0 and start % block == 0:
            if region.run > block and len(row) > 1:
                for first in range(region.start, region.stop, region.run):
                    inside = itemgetter(slice(first, first + region.run))
                    inner = [level.move(inside) for level in row[1:]]
                    changed |= _refine_for_blocks(domains, inner, base + first, block)
        elif block % region.run == 0 and start % block == 0 and (stop - start) % block == 0:
            domains.refine_product(region.domain, block // region.run)
            changed = True
        else:
            edges = range(block * (start // block + 1), stop, block)
            _cut_region(domains, Region(start, stop, region.domain, region.run), edges)
            changed = True
    return changed
