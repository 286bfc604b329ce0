"""What cannot be calibrated is refused in one sentence."""

from typing import Any

import pytest
import torch
from torch import nn

from mergeline.errors import InputError
from tests.calibration.calibrated_models import MODELS, batches, build, calibrated, twins

pytestmark = pytest.mark.filterwarnings("ignore:calibration")


def nan_model() -> nn.Module:
    module = build("resnet")
    with torch.no_grad():
        module.layer2[0].conv1.weight[0] = float("nan")
    return module


REFUSED = {
    "ridge must be above 0": {"ridge": 0.0},
    "columns must be at least 1": {"columns": 0},
    "last_layer 'sum' is not known": {"last_layer": "sum"},
    "'heads' needs the task models' heads": {"last_layer": "heads"},
    "2 heads for 1 task models": {"heads": [torch.ones(2, 5), torch.ones(2, 5)]},
    "one matrix .*they are \\[2\\]": {"heads": [torch.ones(2)]},
    "heads read 7 outputs .*shape \\[16, 5\\]": {"last_layer": "heads", "heads": [torch.ones(2, 7)]},
    "heads hold NaN, Inf or a row of zeros": {"last_layer": "heads", "heads": [torch.full((2, 5), torch.nan)]},
    "heads hold .*row of zeros": {"last_layer": "heads", "heads": [torch.eye(5)[:2] * 0]},
    "no calibration inputs": {"data": []},
    "there are no calibration inputs": {"data": [torch.ones(0, 1, 8, 8)]},
    "no task models": {"modules": []},
    "task models' values at layer2.0.conv1 hold NaN": {"modules": [nan_model()]},
    "merged model's inputs of conv1 hold NaN": {"data": [torch.full((8, 1, 8, 8), torch.nan)]},
    "the task models' outputs hold NaN": {
        "modules": [nan_model()],
        "heads": [torch.randn(3, 5)],
        **{"layers": False, "last_layer": None, "centre": True},
    },
    "all batches must have one shape": {"data": [torch.randn(4, 1, 8, 8), torch.randn(4, 1, 6, 6)]},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_refused_in_one_sentence(message: str) -> None:
    given: dict[str, Any] = {"modules": [build("resnet")], "data": batches("resnet", 16)} | REFUSED[message]
    with pytest.raises(InputError, match=message):
        calibrated(build("resnet"), given.pop("modules"), None, given.pop("data"), **given)


class Prefixed(nn.Module):
    """A token in front of all others, as long as the batch is: `len` makes the trace hold for that length alone."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.linear = nn.Parameter(torch.randn(1, 1, 4)), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.cat([self.token.expand(len(x), -1, -1), x], dim=1).mean(dim=1))


def test_a_module_for_batches_of_one_size_is_refused_others_in_one_sentence() -> None:
    torch.manual_seed(0)
    merged, modules, data = Prefixed(), [Prefixed()], torch.randn(24, 2, 4)
    assert calibrated(merged, modules, None, data.split(8)).record.layers
    with pytest.raises(InputError, match=r"shape \[4, 2, 4\], but .* only be traced for batches of one size \(10\)"):
        calibrated(merged, modules, None, data.split(10))


def test_it_is_said_that_the_merged_models_values_are_not_finite() -> None:
    with pytest.raises(InputError, match=r"the merged model's values at layer2\.0\.conv1 hold NaN"):
        calibrated(nan_model(), [build("resnet")], None, batches("resnet", 16))


def test_what_the_dtype_of_the_merged_model_cannot_hold_is_refused() -> None:
    merged, module = nn.Sequential(nn.Linear(4, 3)).half(), nn.Sequential(nn.Linear(4, 3))
    with torch.no_grad():
        module[0].weight.fill_(1e5)
    with pytest.raises(InputError, match=r"'0.weight' now holds values up to .*float16 cannot hold; .*float32"):
        calibrated(merged, [module], None, [torch.randn(50, 4)])


def test_models_of_other_shapes_and_alignments_of_other_numbers_are_refused() -> None:
    module, other, alignment = twins("resnet")
    wider = MODELS["resnet"][0]()
    wider.linear = nn.Linear(16, 7)
    with pytest.raises(InputError, match=r"'linear.weight' has the shape \[5, 16\] in the merged model.*\[7, 16\]"):
        calibrated(module, [wider], None, batches("resnet", 8))
    with pytest.raises(InputError, match="1 task models, but the alignment is of 2"):
        calibrated(module, [other], alignment, batches("resnet", 8))


def test_models_with_more_tensors_and_alignments_of_another_architecture_are_refused() -> None:
    module, larger = build("resnet"), build("resnet")
    larger.more = nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"task model 1 has a tensor 'more\.weight', and the merged model has none"):
        calibrated(module, [module, larger], None, batches("resnet", 8))
    merged, other, _ = twins("gated")
    with pytest.raises(InputError, match=r"tensor .* of the architecture is missing"):
        calibrated(merged, [merged, other], twins("resnet")[2], batches("gated", 8))


@pytest.mark.parametrize(("options", "message"), [({"centre": True}, "has no bias"), ({}, "")])
def test_a_last_layer_without_bias_cannot_be_centred(options: dict[str, Any], message: str) -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3, bias=False))
    if message:
        with pytest.raises(InputError, match=message):
            calibrated(module, [module], None, [torch.randn(20, 4)], **options)
    else:
        assert calibrated(module, [module], None, [torch.randn(20, 4)]).record.layers[-1].name == "2"


def test_a_model_without_a_last_linear_layer_can_be_refit_but_not_centred() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.LogSoftmax(dim=1))
    with pytest.raises(InputError, match="no linear layer or convolution that can be refit gives"):
        calibrated(module, [module], None, [torch.randn(20, 4)], centre=True)
    assert len(calibrated(module, [module], None, [torch.randn(20, 4)], last_layer=None).record.layers) == 1
