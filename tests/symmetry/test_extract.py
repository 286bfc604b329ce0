"""From labels to families: what is uniform becomes one family, what is not is frozen."""

import numpy as np

from mergeline.symmetry.domains import Domains
from mergeline.symmetry.extract import extract
from mergeline.symmetry.labels import FIXED, AbstractTensor, Level, fresh_level, fresh_levels
from mergeline.symmetry.movement import concatenate, merge, permute, split


def vector(domains, n):
    return AbstractTensor(domains, (n,), ((fresh_level(domains, n, 0, 1),),))


def layouts(domains, **tensors):
    extraction, found = extract(domains, tensors)
    families = {name: (family.size, family.over) for name, family in extraction.families.items()}
    return families, {name: [str(dim) for dim in dims] for name, dims in found.items()}


def test_tensors_that_move_alike_have_one_family():
    domains = Domains()
    x, y = vector(domains, 4), vector(domains, 4)
    domains.unite(0, 1)
    assert layouts(domains, x=x, y=y) == ({"f0": (4, ())}, {"x": ["f0"], "y": ["f0"]})


def test_a_split_axis_is_blocks_with_units_inside():
    domains = Domains()
    x = vector(domains, 6)
    families, found = layouts(domains, x=x, y=split(x, 0, 2, 3))
    assert families == {"f0": (2, ()), "f1": (3, ("f0",))}
    assert found == {"x": ["f0 * f1"], "y": ["f0", "f1"]}


def test_concatenated_parts_keep_their_families():
    domains = Domains()
    x, y = vector(domains, 2), vector(domains, 3)
    fixed = AbstractTensor(domains, (4,), (FIXED,))
    _, found = layouts(domains, both=concatenate([x, fixed, y], 0), x=x, y=y)
    assert found == {"both": ["f0 + _4 + f1"], "x": ["f0"], "y": ["f1"]}


def test_units_that_differ_inside_freeze_those_around_them():
    domains = Domains()
    x = vector(domains, 6)
    split(x, 0, 2, 3)
    first_inside = int(domains.refinement(0).inner[0])
    domains.freeze(first_inside, "only here")
    families, found = layouts(domains, x=x)
    assert families == {"f0": (3, ())}
    assert found == {"x": ["_3 + f0"]}
    assert "differ" in str(domains.reason(domains.refinement(0).outer))


def test_units_of_fixed_blocks_are_one_family_over_their_places():
    """The rows of a stack each have their own order; a vector shows the same units one row after the other."""
    domains = Domains()
    stack = AbstractTensor(domains, (3, 4), (FIXED, (fresh_levels(domains, 4, 1, 0, 3, 2),)))
    families, found = layouts(domains, flat=merge(stack, 0), stack=stack, turned=permute(stack, [1, 0]))
    assert families == {"f0": (4, ("#3",))}
    assert found == {"flat": ["#3 * f0"], "stack": ["#3", "f0"], "turned": ["f0", "#3"]}


def test_two_axes_that_could_be_meant_are_not_guessed():
    domains = Domains()
    level = fresh_levels(domains, 2, 2, 0, 3, 3)
    cube = AbstractTensor(domains, (3, 3, 2), (FIXED, FIXED, (level,)))
    assert layouts(domains, cube=cube)[1] == {"cube": ["#3", "_3", "f0"]}
    both = Level(level.domain + np.zeros((1, 3, 1), dtype=int), level.slot)
    other = fresh_levels(domains, 2, 2, 1, 3, 3)
    mixed = AbstractTensor(domains, (3, 3, 4), (FIXED, FIXED, concatenate_last(both, other)))
    families, found = layouts(domains, mixed=mixed)
    assert (families, found) == ({"f0": (2, ("#3",))}, {"mixed": ["_3", "#3", "_2 + f0"]})


def concatenate_last(*levels):
    shape = (3, 3, 2)
    return (
        Level(
            np.concatenate([np.broadcast_to(level.domain, shape) for level in levels], 2),
            np.concatenate([np.broadcast_to(level.slot, shape) for level in levels], 2),
        ),
    )
