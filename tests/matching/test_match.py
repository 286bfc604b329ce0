"""Assignment against the authors' results, brute force, and its laws."""

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mergeline.errors import InputError
from mergeline.matching.match import match_units


@pytest.mark.parametrize(
    "case", ["two_easy", "two_hard", "two_random", "three", "two_group", "two_group_hard", "three_group"]
)
def test_assignment_equals_the_authors(oracle, case):
    folder = oracle("matching")
    tensors = load_file(folder / f"{case}.safetensors")
    manifest = json.loads((folder / f"{case}.json").read_text())
    keys = [key for key in manifest["expected"] if key.startswith("align")]
    assert keys
    for key in keys:
        matching = match_units(tensors["sims"], models=manifest["n"], groups=manifest.get("groups") or 1)
        assert torch.equal(matching.assign, tensors[f"{key}/assign"].long()), key
        assert matching.value == pytest.approx(manifest["expected"][key]["merge_value"], abs=1e-6), key
        assert matching.width == manifest["expected"][key]["columns"]


def similarity(seed, rows, columns):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_assignment_is_the_best_of_all_permutations(seed, units):
    table = similarity(seed, units, 2 * units)
    cross = table[:, units:]
    best = max(sum(float(cross[p[j], j]) for j in range(units)) for p in itertools.permutations(range(units)))
    assert match_units(table).value * units == pytest.approx(best, abs=1e-5)


@given(st.integers(0, 10_000), st.sampled_from([(2, 2), (2, 3), (3, 2)]))
def test_blocks_stay_together_and_are_the_best_of_all(seed, shape):
    groups, step = shape
    units = groups * step
    cross = similarity(seed, units, units)
    matching = match_units(torch.cat([torch.eye(units), cross], dim=1), groups=groups)
    places = matching.assign[units:]
    blocks = (places // step).reshape(groups, step)
    assert (blocks == blocks[:, :1]).all()

    def inside(i, j):
        tile = cross[i * step : (i + 1) * step, j * step : (j + 1) * step]
        return max(sum(float(tile[p[c], c]) for c in range(step)) for p in itertools.permutations(range(step)))

    best = max(sum(inside(p[j], j) for j in range(groups)) for p in itertools.permutations(range(groups)))
    assert matching.value * units == pytest.approx(best, abs=1e-4)


def test_a_hidden_permutation_is_found_in_every_model():
    hidden = torch.tensor([3, 0, 2, 1])
    table = torch.cat([torch.eye(4), torch.eye(4)[:, hidden], torch.eye(4)], dim=1)
    matching = match_units(table, models=3)
    assert matching.assign.tolist() == [0, 1, 2, 3, *hidden.tolist(), 0, 1, 2, 3]
    assert (matching.width, matching.value) == (4, 1.0)


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (torch.zeros(4, 6), {"models": 2}, "does not fit 2 models"),
        (torch.zeros(4, 8), {"groups": 3}, "cannot be divided into 3"),
        (torch.full((4, 8), float("nan")), {}, "NaN or Inf"),
        (torch.zeros(4, 8), {"method": "zap"}, "'zap' is not known"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(table, options, message):
    with pytest.raises(InputError, match=message):
        match_units(table, **options)
