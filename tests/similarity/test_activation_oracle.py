"""Activation similarity against the values of the authors' program."""

import json

import pytest
import torch
from safetensors.torch import load_file

from mergeline.similarity.activation import Moments, stack_moments, unstack_moments


def moments_of(folder, case):
    tensors = load_file(folder / f"{case}.safetensors")
    manifest = json.loads((folder / f"{case}.json").read_text())
    moments = Moments()
    for batch in range(len(manifest["batches"])):
        models = [tensors[f"batch{batch}/model{i}"] for i in range(manifest["n"])]
        moments.update(torch.cat([x.movedim(1, -1).reshape(-1, x.shape[1]) for x in models], dim=1))
    return moments, tensors


@pytest.mark.parametrize(
    ("case", "tolerance"),
    [("conv_ragged", 1e-5), ("nan_dead", 1e-5), ("offset", 5e-5), ("vector", 1e-5)],
)
def test_correlation_equals_the_authors(oracle, case, tolerance):
    moments, expected = moments_of(oracle("similarity"), case)
    assert (moments.correlation() - expected["corr"]).abs().max() <= tolerance


@pytest.mark.parametrize("case", ["conv_ragged", "nan_dead", "offset", "vector", "constant_unit"])
def test_correlation_equals_two_passes_in_float64(oracle, case):
    moments, expected = moments_of(oracle("similarity"), case)
    assert (moments.correlation() - expected["corr_ref_f64"]).abs().max() <= 1e-5


def test_moments_survive_storage_bit_for_bit(oracle):
    moments, _ = moments_of(oracle("similarity"), "vector")
    restored = unstack_moments(stack_moments({"stream": moments}))["stream"]
    assert torch.equal(restored.correlation(), moments.correlation())
