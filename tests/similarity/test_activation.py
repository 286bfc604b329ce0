"""Laws of activation similarity on small inputs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergeline.errors import InputError
from mergeline.models.resnet import resnet
from mergeline.similarity.activation import Moments, activation_moments, activation_similarity
from tests.derived import symmetry_of


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
    similarity = activation_similarity([model, model], symmetry_of(model), [torch.randn(4, 1, 8, 8)])
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert similarity["conv1"].shape == (8, 8)
    torch.testing.assert_close(similarity["conv1"][:4, :4], similarity["conv1"][:4, 4:])


def test_batches_of_any_size_and_with_labels_are_taken():
    torch.manual_seed(0)
    models = [resnet(width=4, outputs=5), resnet(width=4, outputs=5)]
    images = torch.randn(7, 1, 8, 8)
    whole = activation_similarity(models, symmetry_of(models[0]), [images])
    parts = activation_similarity(
        models, symmetry_of(models[0]), [(batch, "labels") for batch in images.split([4, 2, 1])]
    )
    for group, similarity in whole.items():
        torch.testing.assert_close(parts[group], similarity, atol=1e-5, rtol=0)


def test_every_reader_gives_more_samples_than_the_last():
    torch.manual_seed(0)
    model = resnet(blocks=(2, 1, 1), width=4, outputs=5)
    symmetry, images = symmetry_of(model), [torch.randn(3, 1, 8, 8)]
    last = activation_moments([model], symmetry, images)
    every = activation_moments([model], symmetry, images, consumers="all")
    assert last["conv1"].count == 3 * 8 * 8
    assert every["conv1"].count == 3 * last["conv1"].count  # two blocks of layer 1, and both paths of layer 2 read one
    assert every["layer1.0.conv1"].count == last["layer1.0.conv1"].count


def test_models_that_do_not_fit_the_symmetry_are_named():
    torch.manual_seed(0)
    model, wider = resnet(width=4, outputs=5), resnet(width=8, outputs=5)
    with pytest.raises(InputError, match=r"model 1: tensor 'conv1\.weight' has shape \[8, 1, 3, 3\]"):
        activation_similarity([model, wider], symmetry_of(model), [torch.randn(2, 1, 8, 8)])


@pytest.mark.parametrize("cut", [[20000], [1, 19999], [5, 19995]])
def test_units_that_rarely_respond_cost_no_precision(cut):
    """Mostly 0 and sometimes large, the first sample among them: far from the mean as measured in deviations."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.zeros(20000, 2)
    samples[::5000, 0] = samples[::4000, 1] = 1.0
    samples += 1e-4 * torch.randn(samples.shape, generator=generator)
    assert error(samples, cut) < 2e-5


@pytest.mark.parametrize("cut", [[64, 9936], [256, 9744], [10000]])
def test_a_start_unlike_the_rest_costs_no_precision(cut):
    samples = torch.randn(10000, 16, generator=torch.Generator().manual_seed(0))
    samples[:64] += 100
    assert error(samples, cut) < 1e-5


@pytest.mark.parametrize("by_unit", [False, True])
def test_few_units_with_many_samples_cost_no_precision(by_unit):
    generator = torch.Generator().manual_seed(0)
    samples = (torch.randn(262144, 8, generator=generator) @ torch.randn(8, 32, generator=generator)).relu()
    assert error(samples.T.contiguous().T if by_unit else samples, [262144]) < 1e-5


def error(samples, cut):
    """Largest difference to the correlation in float64."""
    expected = torch.corrcoef(samples.T.double())
    return (moments(samples, cut).correlation().double() - expected).abs().max()
