"""Alignment by permutation against the authors' MuDSC results on the reference ResNet."""

import pytest
import torch

from mergeline.alignment.apply import merge_aligned
from mergeline.alignment.solve import align
from mergeline.checkpoints.readers import open_checkpoint
from mergeline.similarity.activation import activation_similarity
from mergeline.similarity.weight import group_similarity, weight_similarity
from tests.alignment.mudsc import Case

CASES = ["bn_resnet20_perm", "bn_resnet_indep", "bn_resnet_3models", "gn_resnet_perm", "gn_resnet_indep"]
MODES = {"act_useperm": "activation", "useperm": "weight", "act_iws_fs_useperm": "dual"}


@pytest.fixture(scope="module", params=CASES)
def case(request, oracle):
    return Case(oracle("mudsc") / request.param)


def test_the_groups_are_their_nodes(case):
    for group, node in case.node_of.items():
        ours = {(axis.param, axis.dim) for axis in case.symmetry.groups[group].axes}
        theirs = {(entry["param"], entry["axis"]) for entry in case.manifest["nodes"][node]["weights"]}
        assert ours == theirs, group
    assert set(case.node_of) == set(case.symmetry.groups)


def test_similarities_equal_theirs(case):
    activations = activation_similarity(case.modules, case.symmetry, case.batches)
    weights = weight_similarity(case.states, case.symmetry)
    readers = [open_checkpoint(state) for state in case.states]
    for group, node in case.node_of.items():
        expected = case.common[f"act_sim/{node}"]
        assert (activations[group] - expected).abs().max() <= 2e-5, group
        units = case.symmetry.groups[group].size
        expected = case.common[f"weight_sim_identity/{node}"]
        assert (weights[group][:units] - expected).abs().max() <= 2e-5, group
        identity = [case.symmetry.identity()] * len(readers)
        cross = group_similarity(readers, case.symmetry, group, identity)
        assert (cross - expected[:, units:]).abs().max() <= 2e-5, group


@pytest.mark.parametrize("mode", MODES)
def test_assignments_and_merged_tensors_equal_theirs(case, mode):
    entry, expected = case.mode(mode)
    alignment = align(
        case.modules,
        case.symmetry,
        space=MODES[mode],
        balance=entry["fix_rate"],
        batches=case.batches,
        order=case.orders(),
    )
    for group, node in case.node_of.items():
        assert torch.equal(alignment.assign[group], expected[f"assign/{node}"].long()), group
    for history, theirs in zip(alignment.history, entry["trace_newL"], strict=False):
        assert history == pytest.approx(theirs, abs=2e-5)
    merged = merge_aligned(case.states, alignment)
    stored = {name[7:]: tensor for name, tensor in expected.items() if name.startswith("merged/")}
    for name, tensor in stored.items():
        assert (merged[name] - tensor).abs().max() <= 3e-5 * tensor.abs().max(), name
    with torch.no_grad():
        logits = torch.cat([case.module(merged)(batch) for batch in case.batches])
    scale = expected["logits_merged"].abs().max()
    assert (logits - expected["logits_merged"]).abs().max() <= 1e-3 * scale
