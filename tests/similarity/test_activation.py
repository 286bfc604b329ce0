"""Laws of activation similarity on small inputs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergeline.errors import InputError
from mergeline.models.resnet import resnet
from mergeline.models.resnet_symmetry import resnet_symmetry
from mergeline.similarity.activation import Moments, activation_similarity
from mergeline.symmetry.symmetry import Family, Site, Symmetry, parameter_layout


def moments(samples, sizes):
    total = Moments()
    for batch in samples.split(sizes):
        total.update(batch)
    return total


@given(st.integers(0, 1000), st.integers(1, 39))
def test_the_cut_into_batches_does_not_matter(seed, cut):
    samples = torch.randn(40, 6, generator=torch.Generator().manual_seed(seed)) + 30
    whole, parts = moments(samples, [40]), moments(samples, [cut, 40 - cut])
    torch.testing.assert_close(parts.correlation(), whole.correlation(), atol=1e-5, rtol=0)


def test_a_unit_correlates_fully_with_its_copy_and_not_at_all_with_a_constant():
    unit = torch.randn(50, 1, generator=torch.Generator().manual_seed(0))
    similarity = moments(
        torch.cat([unit, 3 * unit + 7, -unit, torch.full((50, 1), 1e4)], dim=1), [20, 30]
    ).correlation()
    torch.testing.assert_close(similarity[0], torch.tensor([1.0, 1.0, -1.0, 0.0]), atol=1e-6, rtol=0)


def test_nan_and_inf_count_as_zero():
    samples = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    broken, zeroed = samples.clone(), samples.clone()
    broken[0, 0], broken[1, 1], broken[2, 2] = float("nan"), float("inf"), -float("inf")
    zeroed[0, 0] = zeroed[1, 1] = zeroed[2, 2] = 0
    assert torch.equal(moments(broken, [30]).correlation(), moments(zeroed, [30]).correlation())


def test_no_batches_is_an_error():
    with pytest.raises(InputError, match="no samples"):
        Moments().correlation()


def test_modules_are_left_as_they_were():
    torch.manual_seed(0)
    model = resnet(width=4, outputs=5).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    similarity = activation_similarity([model, model], resnet_symmetry(model), [torch.randn(4, 1, 8, 8)])
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.get_submodule("linear")._forward_pre_hooks
    assert similarity["stream1"].shape == (8, 8)
    torch.testing.assert_close(similarity["stream1"][:4, :4], similarity["stream1"][:4, 4:])


def test_a_site_that_the_model_lacks_is_named():
    symmetry = Symmetry(
        {"units": Family("units", 3)},
        {"0.weight": parameter_layout(["units", "_2"], ["out", ""])},
        (Site("nowhere", 1, "units"),),
    )
    with pytest.raises(InputError, match="no submodule 'nowhere'"):
        activation_similarity([torch.nn.Sequential(torch.nn.Linear(2, 3))], symmetry, [torch.randn(2, 2)])
