"""Groups that share families against brute force over every combination of permutations."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergeline.errors import InputError
from mergeline.matching.linked import Evidence, match_linked

SIZES = {"a": 3, "b": 2, "c": 2, "d": 2, "#2": 2}
NESTED = {
    "attention": ([("a", "b"), ("a", "c")], {"a": (), "b": ("a",), "c": ("a",)}),
    "with a table": ([("a",), ("a", "b"), ("a", "c")], {"a": (), "b": ("a",), "c": ("a",)}),
    "three deep": ([("a", "b", "c"), ("a",)], {"a": (), "b": ("a",), "c": ("a", "b")}),
    "order of over": ([("a", "b", "c")], {"a": (), "b": ("a",), "c": ("b", "a")}),
    "counted": ([("#2", "b")], {"b": ("#2",)}),
    "apart": ([("a",), ("b", "c")], {"a": (), "b": (), "c": ("b",)}),
}
IN_TURN = {
    "shared inside": ([("a", "b"), ("a", "c"), ("b",)], {"a": (), "b": (), "c": ("a",)}),
    "grouped queries": ([("a", "b", "c"), ("a",), ("a", "c")], {"a": (), "b": ("a",), "c": ("a",)}),
    "no nesting": ([("a", "b"), ("c", "b"), ("b", "c")], {"a": (), "b": (), "c": ()}),
    "counted, not over": ([("#2", "b"), ("b",)], {"b": ()}),
}


def evidence(paths, seed):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for path in paths:
        sizes = [SIZES[name] for name in path]
        found.append(Evidence(path, torch.randn(*sizes, *sizes, generator=generator, dtype=torch.float64)))
    return found


def places(path, over, permutations):
    """For each unit of the reference along a path, the unit of the model."""
    for unit in itertools.product(*(range(SIZES[name]) for name in path)):
        here = dict(zip(path, unit, strict=True))
        other = [
            here[name]
            if name not in permutations
            else int(permutations[name][tuple(here[outer] for outer in over[name])][here[name]])
            for name in path
        ]
        yield (*unit, *other)


def value(found, over, permutations):
    return sum(float(item.similarity[place]) for item in found for place in places(item.path, over, permutations))


def every_combination(paths, over):
    families = [name for name in over if any(name in path for path in paths)]
    shapes = [tuple(SIZES[outer] for outer in over[name]) for name in families]
    choices = []
    for name, shape in zip(families, shapes, strict=True):
        rows = list(itertools.permutations(range(SIZES[name])))
        count = int(torch.tensor(shape).prod()) if shape else 1
        choices.append(
            [torch.tensor(rows_).reshape(*shape, SIZES[name]) for rows_ in itertools.product(rows, repeat=count)]
        )
    for combination in itertools.product(*choices):
        yield dict(zip(families, combination, strict=True))


@pytest.mark.parametrize("case", NESTED)
@pytest.mark.parametrize("seed", range(4))
def test_nested_families_are_matched_best(case, seed):
    paths, over = NESTED[case]
    found = evidence(paths, seed)
    permutations = match_linked(found, over)
    best = max(value(found, over, other) for other in every_combination(paths, over))
    assert value(found, over, permutations) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("case", IN_TURN)
@pytest.mark.parametrize("seed", range(10))
def test_no_family_alone_can_be_matched_better(case, seed):
    paths, over = IN_TURN[case]
    found = evidence(paths, seed)
    permutations = match_linked(found, over)
    assert set(permutations) == {name for path in paths for name in path if name in over}
    reached = value(found, over, permutations)
    for name in permutations:
        for other in every_combination([(name,)], {name: over[name]}):
            assert value(found, over, {**permutations, **other}) <= reached + 1e-9


@given(st.sampled_from(sorted(NESTED | IN_TURN)), st.integers(0, 1000))
def test_a_hidden_permutation_is_found(case, seed):
    """The reference is the model with its units permuted: matched units have similarity 1, all others less."""
    paths, over = (NESTED | IN_TURN)[case]
    choices = every_combination(paths, over)
    hidden = next(itertools.islice(choices, seed % 50, None), None) or next(every_combination(paths, over))
    found = []
    for item in evidence(paths, seed):
        similarity = item.similarity.tanh() / 2
        for place in places(item.path, over, hidden):
            similarity[place] = 1
        found.append(Evidence(item.path, similarity))
    for name, permutation in match_linked(found, over).items():
        assert torch.equal(permutation, hidden[name]), name


def test_families_that_lie_over_each_other_are_refused():
    with pytest.raises(InputError, match="a, b: they lie over each other"):
        match_linked(evidence([("a", "b")], 0), {"a": ("b",), "b": ("a",)})
