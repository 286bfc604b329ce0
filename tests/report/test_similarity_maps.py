"""Heat maps of similarities: after matching the diagonal is what the sweeps maximised."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from mergeline.alignment.solve import align
from mergeline.checkpoints.readers import open_checkpoint
from mergeline.report.similarity_maps import SIDE, shown_groups, similarity_maps
from mergeline.similarity.activation import activation_similarity
from mergeline.similarity.weight import weight_similarity
from mergeline.symmetry.derive import derive_symmetry

WIDTHS = (70, 9)
INPUTS = torch.randn(200, 5, generator=torch.Generator().manual_seed(7))


def network(seed):
    torch.manual_seed(seed)
    sizes = (5, *WIDTHS, 3)
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).eval()


@pytest.fixture(scope="module")
def models():
    return [network(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def symmetry(models):
    return derive_symmetry(models[0], (INPUTS,))


def maps_of(models, symmetry, space, method, balance=0.3, count=4):
    alignment = align(models, symmetry, space=space, method=method, balance=balance, batches=[INPUTS])
    states = [model.state_dict() for model in models]
    found = similarity_maps(
        [open_checkpoint(state) for state in states],
        alignment,
        space=space,
        balance=balance,
        weights=weight_similarity(states, symmetry),
        activations=activation_similarity(models, symmetry, [INPUTS]),
        count=count,
    )
    return alignment, {found.units: found for found in found}


@pytest.mark.parametrize("space", ["weight", "activation", "dual"])
def test_the_diagonal_is_what_was_matched(models, symmetry, space):
    alignment, maps = maps_of(models[:2], symmetry, space, "permute")
    assert maps.keys() == set(WIDTHS)
    small = maps[9]
    assert small.matched == alignment.values[small.group]
    after, before = (torch.tensor(table).diagonal().mean().item() for table in (small.after, small.before))
    assert after == pytest.approx(small.matched, abs=1e-3)
    assert after > before


def test_a_large_table_is_shown_in_few_cells_that_keep_single_matches(models, symmetry):
    _, maps = maps_of(models[:2], symmetry, "activation", "permute")
    table = torch.tensor(maps[70].after)
    assert table.shape == (SIDE, SIDE)
    assert table.diagonal().mean() >= maps[70].matched - 1e-3


def test_units_that_are_zipped_have_maps_too(models, symmetry):
    _, maps = maps_of(models[:2], symmetry, "dual", "zip")
    for found in maps.values():
        assert torch.tensor([found.before, found.after]).isfinite().all()
        assert found.before != found.after


def test_of_many_groups_the_worst_and_the_best_are_among_those_shown():
    matched = {f"group{number}": number / 10 for number in range(10)}
    assert shown_groups(matched, 4) == ["group0", "group3", "group6", "group9"]
    assert shown_groups(matched, 20) == list(matched)
    assert shown_groups({}, 4) == []
