"""Labels that are made to agree: which permutations are left is counted and compared with brute force."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeline.symmetry.domains import Domains, Product, Sum
from mergeline.symmetry.labels import FIXED, Level, compress, resolve, rows, shrink
from mergeline.symmetry.unify import cut, prepare_split, unify


def row(domains, *sizes_and_runs):
    """A label of one level: domains of these sizes, one after the other, each slot `run` positions wide."""
    domain, slot = [], []
    for size, run in sizes_and_runs:
        domain += [domains.new(size)] * (size * run)
        slot += [s for s in range(size) for _ in range(run)]
    return (Level(np.array(domain), np.array(slot)),)


def permutations(domains, domain):
    """All permutations of the slots of a domain that are allowed now, as tuples of old slots."""
    domain = domains.find(domain)
    size = domains.size(domain)
    if domains.reason(domain) is not None:
        return {tuple(range(size))}
    match domains.refinement(domain):
        case None:
            return set(itertools.permutations(range(size)))
        case Sum(segments, starts):
            lengths = np.diff([*starts, size]).tolist()
            parts = [
                [tuple(range(n))] if segment < 0 else permutations(domains, segment)
                for segment, n in zip(segments.tolist(), lengths, strict=True)
            ]
            return {
                tuple(s + x for s, part in zip(starts.tolist(), choice, strict=True) for x in part)
                for choice in itertools.product(*parts)
            }
        case Product(outer, inner, block):
            inside = [permutations(domains, d) for d in inner.tolist()]
            return {
                tuple(o * block + x for o, fibre in zip(order, choice, strict=True) for x in fibre)
                for order in permutations(domains, outer)
                for choice in itertools.product(*inside)
            }


def blocks(size, run, order):
    """Positions of `size` slots of width `run` in another order."""
    return tuple(s * run + x for s in order for x in range(run))


@pytest.mark.parametrize(
    ("left", "right", "order"),
    [
        ([(4, 1)], [(4, 1)], 24),
        ([(6, 1)], [(3, 2)], 6),  # blocks of two, and the right cannot turn what lies inside a slot
        ([(6, 1)], [(2, 3)], 2),
        ([(6, 1)], [(4, 1), (2, 1)], 24 * 2),
        ([(4, 1), (2, 1)], [(2, 1), (4, 1)], 2 * 2 * 2),
        ([(2, 3)], [(3, 2)], 1),  # blocks that cross
        ([(2, 2), (2, 1)], [(6, 1)], 2 * 2),
        ([(2, 3)], [(5, 1), (1, 1)], 1),
    ],
)
def test_what_two_labels_allow_is_what_both_allow(left, right, order):
    domains = Domains()
    a, b = row(domains, *left), row(domains, *right)
    unify(domains, a, b)
    one, other = resolve(domains, a), resolve(domains, b)
    assert len(one) == len(other)
    assert all(x.same_as(y) for x, y in zip(one, other, strict=True))
    choices = [permutations(domains, d) for d in dict.fromkeys(a[0].domain.tolist()) if d >= 0]
    assert math.prod(map(len, choices)) == order


@given(st.data())
def test_unified_labels_move_alike(data):
    """Every permutation of the domains that is left moves both labels the same way, position by position."""
    domains = Domains()
    n = data.draw(st.sampled_from([4, 6, 8]))

    def label():
        parts, left = [], n
        while left:
            width = data.draw(st.integers(1, left))
            run = data.draw(st.sampled_from([r for r in (1, 2, 3) if width % r == 0]))
            parts.append((width // run, run))
            left -= width
        return parts

    left, right = label(), label()
    a, b = row(domains, *left), row(domains, *right)
    unify(domains, a, b)
    moves = []
    for parts, (level,) in ((left, a), (right, b)):
        choices, start = [], 0
        for size, run in parts:
            domain = int(level.domain[start])
            found = {tuple(range(size))} if domain < 0 else permutations(domains, domain)
            choices.append({tuple(start + x for x in blocks(size, run, order)) for order in found})
            start += size * run
        moves.append({tuple(itertools.chain(*choice)) for choice in itertools.product(*choices)})
    assert moves[0] == moves[1]


def test_units_that_repeat_out_of_order_are_frozen():
    domains = Domains()
    domain = domains.new(3)
    twisted = (Level(np.array([domain] * 3), np.array([1, 0, 2])),)
    unify(domains, twisted, row(domains, (3, 1)))
    assert resolve(domains, twisted) == FIXED


@pytest.mark.parametrize(("position", "order"), [(1, 6 * 1), (2, 2 * 2), (0, 24), (4, 24)])
def test_a_cut_keeps_units_on_their_side(position, order):
    domains = Domains()
    label = row(domains, (4, 1))
    cut(domains, label, position)
    assert len(permutations(domains, 0)) == order


def test_a_cut_through_a_wide_unit_leaves_it_alone():
    domains = Domains()
    label = row(domains, (4, 2))
    cut(domains, label, 3)
    assert permutations(domains, 0) == {(0, 1, 2, 3), (0, 1, 3, 2)}


@pytest.mark.parametrize(("block", "order"), [(2, 6 * 2**3), (3, 2 * 6**2), (4, None)])
def test_a_split_moves_whole_blocks(block, order):
    domains = Domains()
    label = row(domains, (6, 1), *([(2, 1)] if block == 4 else []))
    prepare_split(domains, label, block)
    if order:
        assert len(permutations(domains, 0)) == order
    else:  # the second block holds units of both: they stay within their halves
        assert len(permutations(domains, 0)) == 24 * 2


def test_what_lies_inside_the_slots_is_unified_too():
    domains = Domains()
    outer, inner = domains.new(2), domains.new_many(2, 2)
    a = (
        Level(np.full(4, outer), np.array([0, 0, 1, 1])),
        Level(inner.repeat(2), np.array([0, 1, 0, 1])),
    )
    b = row(domains, (4, 1))
    unify(domains, a, b)
    assert len(permutations(domains, int(b[0].domain[0]))) == 2 * 2 * 2


def test_levels_move_outward_where_nothing_lies_above():
    upper = Level(np.array([0, 0, -1, -1]), np.array([0, 1, 0, 0]))
    lower = Level(np.array([-1, -1, 1, 1]), np.array([0, 0, 0, 1]))
    (only,) = compress([upper, lower])
    assert only.domain.tolist() == [0, 0, 1, 1]
    assert only.slot.tolist() == [0, 1, 0, 1]


def test_extents_along_which_nothing_changes_are_dropped():
    same = Level(np.zeros((3, 4), dtype=int), np.tile(np.arange(4), (3, 1)))
    other = Level(np.arange(12).reshape(3, 4) // 4, np.tile(np.arange(4), (3, 1)))
    assert shrink((same,), 1)[0].domain.shape == (1, 4)
    assert shrink((other,), 1)[0].domain.shape == (3, 4)
    assert len(rows((other,), 1)) == 3
    assert len(rows((same,), 1)) == 1
