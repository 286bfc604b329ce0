"""What a calibration warns of, with numbers."""

import warnings

import pytest
import torch
from torch import nn

import mergeline as ml
from tests.calibration.calibrated_models import batches, build, calibrated, difference, disturbed

pytestmark = pytest.mark.filterwarnings("ignore:calibration")


def test_too_few_inputs_are_warned_of_with_numbers() -> None:
    module = build("resnet")
    with pytest.warns(UserWarning, match=r"linear has 16 inputs, but only 4 columns.*ridge decides"):
        ml.calibrate(module, [module], None, batches("resnet", 4), layers=False, centre=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ml.calibrate(module, [module], None, batches("resnet", 64), layers=False, centre=False)


def test_one_example_is_said_to_be_too_few() -> None:
    module = build("resnet")
    with pytest.warns(UserWarning, match="one column alone to find the weights of linear from"):
        ml.calibrate(module, [module], None, batches("resnet", 1), layers=False, centre=False)


def test_layers_that_miss_more_than_before_are_warned_of_with_numbers() -> None:
    merged, module = disturbed(build("resnet"), 0.05), build("resnet")
    found = calibrated(merged, [module], None, batches("resnet", 30), columns=40, ridge=1e-6)
    worse = max(found.record.layers, key=lambda layer: layer.after - layer.before)
    (sentence,) = [x for x in found.record.warnings if "misses more" in x]
    assert worse.after > worse.before
    assert f"{worse.name} misses more" in sentence and f"({worse.after:.3f} of" in sentence and "raise" in sentence


def test_a_ridge_too_small_for_the_data_is_raised_with_a_warning() -> None:
    merged = disturbed(build("resnet"))
    found = calibrated(merged, [build("resnet")], None, batches("resnet", 5), ridge=1e-9)
    assert any("a ridge of 1e-09 is below the rounding" in sentence for sentence in found.record.warnings)
    assert all(layer.condition <= 1e8 for layer in found.record.layers)
    assert difference(merged, found.module, batches("resnet", 8, seed=9)[0]) < 1
    assert not any("rounding" in x for x in calibrated(merged, [merged], None, batches("resnet", 5)).record.warnings)


def test_a_layer_whose_inputs_never_vary_keeps_its_weights_and_is_named() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        module[0].bias.fill_(-1e3)
    found = calibrated(module, [module], None, [torch.randn(20, 4)])
    assert torch.equal(found.module[2].weight, module[2].weight)
    assert "do not vary" in found.record.kept["2"]
    assert any("the inputs of 2 are the same everywhere" in sentence for sentence in found.record.warnings)


def test_a_skewed_set_is_warned_of_while_outputs_are_centred() -> None:
    torch.manual_seed(0)
    module, heads = nn.Sequential(nn.Linear(4, 4)), [torch.eye(4)]
    with torch.no_grad():
        module[0].weight.copy_(torch.eye(4))
        module[0].bias.zero_()
    data = 5 * torch.eye(4)[torch.arange(80) % 4] + 0.1 * torch.randn(80, 4)
    found = calibrated(module, [module], None, [data], centre=True, heads=heads)
    assert not found.record.warnings and found.record.shares == pytest.approx([0.25] * 4, abs=0.02)
    skewed = torch.cat([data[data.argmax(dim=1) == 0].repeat(10, 1), data])
    found = calibrated(module, [module], None, [skewed], centre=True, heads=heads)
    assert "far from equally frequent" in found.record.warnings[0]
    assert not calibrated(module, [module], None, [skewed], centre=False, heads=heads).record.warnings
