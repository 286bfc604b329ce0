"""Alignment by permutation against the authors' MuDSC results on the reference ResNet."""

import pytest
import torch

from mergeline.alignment.merge import merge_aligned
from mergeline.alignment.solve import align
from mergeline.calibration.normalization import reset_normalization
from mergeline.checkpoints.readers import open_checkpoint
from mergeline.merging.engine import merge
from mergeline.similarity.activation import activation_similarity
from mergeline.similarity.weight import WeightRows, weight_similarity
from tests.alignment.mudsc import Case

CASES = [
    "bn_resnet20_perm",
    "bn_resnet_indep",
    "bn_resnet_3models",
    "gn_resnet_perm",
    "gn_resnet_indep",
    "vit_perm",
    "vit_indep",
]
MODES = {
    "act_useperm": ("activation", "permute"),
    "useperm": ("weight", "permute"),
    "act_iws_fs_useperm": ("dual", "permute"),
    "act": ("activation", "zip"),
    "weight_zip": ("weight", "zip"),
    "act_iws_fs": ("dual", "zip"),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, oracle):
    return Case(oracle("mudsc") / request.param)


def test_the_groups_are_their_nodes(case):
    if case.manifest["arch"]["type"] == "vit":
        pytest.skip("fused projections are apart in their nodes: see tests/symmetry/test_mudsc_nodes.py")
    for group, node in case.node_of.items():
        ours = {(axis.param, axis.dim) for axis in case.symmetry.groups[group].axes}
        theirs = {(entry["param"], entry["axis"]) for entry in case.manifest["nodes"][node]["weights"]}
        assert ours == theirs, group
    assert set(case.node_of) == set(case.symmetry.groups)


def test_similarities_equal_theirs(case):
    activations = activation_similarity(case.modules, case.symmetry, case.batches, consumers="last value")
    weights = weight_similarity(case.states, case.symmetry)
    rows = WeightRows([open_checkpoint(state) for state in case.states], case.symmetry)
    for group, node in case.node_of.items():
        expected = case.common[f"act_sim/{node}"]
        assert (activations[group] - expected).abs().max() <= 2e-5, group
        units = case.symmetry.groups[group].size
        expected = case.common[f"weight_sim_identity/{node}"]
        assert (weights[group][:units] - expected).abs().max() <= 2e-5, group
        identity = [case.symmetry.identity()] * len(rows.readers)
        cross = rows.cross(group, identity)
        assert (cross - expected[:, units:]).abs().max() <= 2e-5, group


@pytest.mark.parametrize("mode", MODES)
def test_assignments_and_merged_models_equal_theirs(case, mode):
    space, method = MODES[mode]
    for entry, expected in case.modes(mode):
        alignment = align(
            case.modules,
            case.symmetry,
            space=space,
            method=method,
            balance=entry["fix_rate"],
            reduce=entry["reduce"] if method == "zip" else None,
            batches=case.batches,
            order=case.orders(),
            parity="authors",
        )
        for group, node in case.node_of.items():
            assert torch.equal(alignment.assign[group], expected[f"assign/{node}"].long()), group
        for ours, theirs in zip(alignment.history, entry["trace_newL"], strict=False):
            assert ours == pytest.approx(theirs, abs=2e-5)
        compare(case, merge_aligned(case.states, alignment), expected)


def test_the_plain_average_equals_theirs(case):
    for _, expected in case.modes("avg"):
        compare(case, dict(merge(case.states, method="average")), expected)


def compare(case, merged, expected):
    """The merged tensors, and the logits before and after the normalisation reset."""
    stored = {name[7:]: tensor for name, tensor in expected.items() if name.startswith("merged/")}
    for name, tensor in stored.items():
        assert (merged[name] - tensor).abs().max() <= 2e-5 * tensor.abs().max(), name
    module = case.module(merged)
    assert logits_differ(case, module, expected["logits_merged"]) <= 2e-4
    reset = reset_normalization(module, case.batches)
    assert logits_differ(case, reset, expected["logits_merged_bnreset"]) <= 2e-4


def logits_differ(case, module, expected):
    with torch.no_grad():
        logits = torch.cat([module(batch) for batch in case.batches])
    return (logits - expected).abs().max() / expected.abs().max()
