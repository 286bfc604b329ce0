"""Zip against the authors' results, against a plain program that follows the definition, and its laws."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mergeline.errors import InputError
from mergeline.matching.match import match_units

CASES = ["two_easy", "two_hard", "two_random", "three", "two_group", "two_group_hard", "three_group"]


@pytest.mark.parametrize("case", CASES)
def test_zip_equals_the_authors(oracle, case):
    folder = oracle("matching")
    tensors = load_file(folder / f"{case}.safetensors")
    manifest = json.loads((folder / f"{case}.json").read_text())
    expected = {key: entry for key, entry in manifest["expected"].items() if key.startswith("zip")}
    assert expected
    for key, entry in expected.items():
        options = entry["params"]
        matching = match_units(
            tensors["sims"],
            models=manifest["n"],
            method="zip",
            groups=manifest["groups"],
            reduce=options["r"],
            decay=options["a"],
            budget=options["b"],
        )
        assert torch.equal(matching.assign, tensors[f"{key}/assign"].long()), key
        assert matching.width == entry["columns"]
        assert matching.value == pytest.approx(entry["merge_value"], abs=1e-6), key


def by_definition(table, models, width, decay, budget):
    """The same, looking through the whole table for every merge. Returns the members of each merged unit."""
    table = table.astype(float).copy()
    np.fill_diagonal(table, -np.inf)
    clusters = [[unit] for unit in range(len(table))]
    origin = [unit // (len(table) // models) for unit in range(len(table))]
    left = [int((len(table) - width) // models * budget + 1e-4)] * models
    while len(clusters) > width:
        first, second = divmod(int(table.argmax()), len(table))
        row = np.minimum(table[first], table[second])
        row = np.where(np.isinf(row), row, np.nan_to_num(row, neginf=0) * decay)
        table[first], table[:, first] = row, row
        clusters[first] += clusters[second]
        if origin[first] == origin[second]:
            left[origin[first]] -= 1
            if left[origin[first]] <= 0:
                same = np.array(origin) == origin[first]
                table[same[:, None] & same[None]] = -np.inf
        table = np.delete(np.delete(table, second, 0), second, 1)
        del clusters[second], origin[second]
    return [sorted(cluster) for cluster in clusters]


def symmetric(seed, units, levels=None):
    table = np.random.default_rng(seed).standard_normal((units, units))
    table = np.round(table * levels) / levels if levels else table
    return torch.from_numpy((table + table.T) / 2)


@given(
    seed=st.integers(0, 10_000),
    models=st.integers(1, 4),
    units=st.integers(1, 12),
    share=st.floats(0, 1),
    decay=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    budget=st.sampled_from([0.5, 1.0, 2.0]),
    levels=st.sampled_from([None, 2, 10]),
)
def test_zip_follows_its_definition(seed, models, units, share, decay, budget, levels):
    """Also with many equal entries (`levels`), where the first pair wins."""
    table = symmetric(seed, models * units, levels)
    reduce = share * (1 - 1 / models)  # further, the budgets may end
    matching = match_units(table, models=models, method="zip", reduce=reduce, decay=decay, budget=budget)
    clusters = by_definition(table.numpy(), models, matching.width, decay, budget)
    assert [(matching.assign == merged).nonzero()[:, 0].tolist() for merged in range(matching.width)] == clusters


@given(seed=st.integers(0, 10_000), models=st.integers(2, 3), groups=st.integers(1, 3), step=st.integers(1, 4))
def test_blocks_are_zipped_by_themselves(seed, models, groups, step):
    units = groups * step
    matching = match_units(symmetric(seed, models * units), models=models, method="zip", groups=groups)
    assert matching.width == units
    sets = (matching.assign // step).reshape(models, groups, step)
    assert (sets == sets[:, :, :1]).all()
    assert all(sorted(model[:, 0].tolist()) == list(range(groups)) for model in sets)


def test_identical_models_are_zipped_unit_by_unit():
    base = torch.eye(6) * 0.5 + 0.5
    matching = match_units(base.repeat(2, 2), method="zip")
    assert torch.equal(matching.assign, torch.arange(6).repeat(2))
    assert matching.value == 1


def test_nothing_is_merged_where_nothing_is_reduced():
    matching = match_units(symmetric(0, 6), method="zip", reduce=0)
    assert torch.equal(matching.assign, torch.arange(6))
    assert (matching.width, matching.value) == (6, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduce": 1.0}, "reduce is 1.0"),
        ({"reduce": -0.1}, "reduce is -0.1"),
        ({"decay": 1.5}, "decay is 1.5"),
        ({"budget": -1.0}, "budget is -1.0"),
        ({"reduce": 0.9, "budget": 0.1}, "the budgets of merges within a model end"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        match_units(symmetric(0, 20), method="zip", **options)


def test_zip_needs_the_similarity_inside_models():
    with pytest.raises(InputError, match=r"models \* units, models \* units"):
        match_units(symmetric(0, 6)[:3], method="zip")
