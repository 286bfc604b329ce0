"""Laws of weight similarity."""

import pytest
import torch

from mergeline.alignment.apply import apply_alignment
from mergeline.checkpoints.readers import open_checkpoint
from mergeline.errors import InputError
from mergeline.models.resnet import resnet
from mergeline.similarity.weight import WeightRows, weight_axes, weight_similarity
from tests.derived import symmetry_of


@pytest.fixture
def model():
    torch.manual_seed(0)
    return resnet(width=4, outputs=7, stem_stride=2)


def test_a_model_is_like_itself(model):
    symmetry = symmetry_of(model)
    for name, similarity in weight_similarity([model.state_dict()] * 2, symmetry).items():
        units = symmetry.groups[name].size
        assert similarity.shape == (2 * units, 2 * units)
        torch.testing.assert_close(similarity.diagonal(units), torch.ones(units), rtol=0, atol=1e-5)
        torch.testing.assert_close(similarity, similarity.T, rtol=0, atol=1e-6)


def test_rows_are_all_weights_of_a_unit_and_nothing_else(model):
    symmetry = symmetry_of(model)
    reader = open_checkpoint(model.state_dict())
    rows = WeightRows([reader], symmetry).rows(0, "layer1.0.conv1", symmetry.identity())
    state = model.state_dict()
    unit = 2
    expected = torch.cat(
        [
            state["layer1.0.conv1.weight"][unit].flatten(),
            state["layer1.0.bn1.weight"][unit : unit + 1],
            state["layer1.0.bn1.bias"][unit : unit + 1],
            state["layer1.0.conv2.weight"][:, unit].flatten(),
        ]
    )
    assert torch.equal(rows[unit].sort().values, expected.sort().values)
    assert not any("running" in axis.param for axis in weight_axes(symmetry, "layer1.0.conv1"))


def test_neighbours_are_compared_in_the_order_that_the_alignment_says(model):
    """With every neighbour in the right order a scrambled model is as like the original as the original itself."""
    symmetry = symmetry_of(model)
    scramble = symmetry.random_alignment(1)
    scrambled = apply_alignment(model.state_dict(), scramble, 0)
    back = scramble.inverse().permutations[0]
    alignment = type(scramble)(symmetry, (symmetry.identity(), back))
    plain = weight_similarity([model.state_dict(), scrambled], symmetry)
    aligned = weight_similarity([model.state_dict(), scrambled], symmetry, alignment)
    for name, group in symmetry.groups.items():
        units = group.size
        cross = aligned[name][:units, units:]
        best = cross.max(dim=0)
        torch.testing.assert_close(best.values, torch.ones(units), rtol=0, atol=1e-5)
        assert torch.equal(best.indices, back[name].argsort()), name
        assert not torch.allclose(plain[name][:units, units:], cross)


def test_another_number_of_models_is_refused(model):
    symmetry = symmetry_of(model)
    with pytest.raises(InputError, match="1 models, but the alignment has 2"):
        weight_similarity([model.state_dict()], symmetry, type(symmetry.random_alignment())(symmetry, ({}, {})))
