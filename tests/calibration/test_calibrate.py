"""Closed-form calibration: its laws, what it gains, what it leaves alone, and what it refuses."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

import mergeline as ml
from mergeline.alignment.alignment import Alignment
from mergeline.alignment.fold import Zip
from mergeline.calibration import shelf
from tests.calibration.calibrated_models import (
    MODELS,
    batches,
    build,
    calibrated,
    difference,
    disturbed,
    twins,
    zipped_twins,
)

pytestmark = pytest.mark.filterwarnings("ignore:calibration")


@pytest.mark.parametrize("pair", [twins, zipped_twins])
@pytest.mark.parametrize("name", MODELS)
def test_a_merge_of_equal_models_stays_what_it_is(name: str, pair: Callable[[str], Any]) -> None:
    module, other, alignment = pair(name)
    found = calibrated(module, [module, other], alignment, batches(name, 16, 16))
    assert difference(module, found.module, batches(name, 8, seed=9)[0]) <= 1e-4
    assert found.record.layers and all(layer.before <= 1e-8 for layer in found.record.layers)


@pytest.mark.parametrize("name", MODELS)
def test_a_large_ridge_gives_the_merged_model(name: str) -> None:
    module, other, alignment = twins(name)
    merged = disturbed(module)
    for ridge in (1e9, float("inf")):
        found = calibrated(merged, [module, other], alignment, batches(name, 16), ridge=ridge)
        assert difference(merged, found.module, batches(name, 8, seed=9)[0]) <= 1e-4


@pytest.mark.parametrize("columns", [None, 60])
@pytest.mark.parametrize("name", MODELS)
def test_neither_order_nor_batches_of_the_inputs_matter(name: str, columns: int | None) -> None:
    module, other, alignment = twins(name)
    merged, data = disturbed(module), torch.cat(batches(name, 24))
    shuffled = data[torch.randperm(24, generator=torch.Generator().manual_seed(0))]
    first = calibrated(merged, [module, other], alignment, [data], columns=columns)
    second = calibrated(merged, [module, other], alignment, shuffled.split([10, 4, 10]), columns=columns)
    assert difference(first.module, second.module, batches(name, 8, seed=9)[0]) <= 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_a_disturbed_model_is_led_back_to_its_task_models(name: str) -> None:
    module, other, alignment = twins(name)
    merged, unseen = disturbed(module), batches(name, 32, seed=9)[0]
    found = calibrated(merged, [module, other], alignment, batches(name, 200, 100), ridge=1e-4)
    assert difference(module, found.module, unseen) <= 0.2 * difference(module, merged, unseen)
    assert all(layer.after <= layer.before for layer in found.record.layers)
    assert not found.record.warnings


@pytest.mark.parametrize("name", ["resnet", "separable", "branches"])
def test_statistics_measured_anew_afterwards_change_nothing(name: str) -> None:
    """An evaluation does that; the normalisation in front of a layer must have the statistics of what it now sees."""
    module, other, alignment = twins(name)
    data = batches(name, 200)
    found = calibrated(disturbed(module), [module, other], alignment, data)
    again = ml.reset_normalization(found.module, data)
    assert difference(found.module, again, batches(name, 8, seed=9)[0]) <= 1e-3


def test_terms_of_a_sum_that_are_no_one_map_with_the_others_are_refit_before_it() -> None:
    record = calibrated(build("branches"), [build("branches", 1)], None, batches("branches", 16)).record
    assert [x.name for x in record.layers] == ["stem", "wide + norm2", "norm3", "full", "places", "conv", "linear"]
    assert not record.kept


def test_every_layer_is_refit_jointly_where_outputs_are_summed() -> None:
    module, other, alignment = twins("resnet")
    names = [
        layer.name for layer in calibrated(module, [module, other], alignment, batches("resnet", 16)).record.layers
    ]
    assert "layer2.0.conv2 + layer2.0.shortcut.0" in names and "layer2.1.conv2" in names
    assert names[0] == "conv1" and names[-1] == "linear" and len(names) == 10


def test_layers_of_all_kinds_are_found() -> None:
    record = calibrated(build("gated"), [build("gated", 1)], None, batches("gated", 16)).record
    names = [layer.name for layer in record.layers]
    assert names == ["embed", "attention.in_proj_weight", "attention.out_proj", "gate", "up", "down", "head"]
    record = calibrated(build("crossed"), [build("crossed", 1)], None, batches("crossed", 16)).record
    names = [layer.name for layer in record.layers]
    assert names[3:6] == ["two.in_proj_weight[0:8]", "two.in_proj_weight[8:24]", "two.out_proj"] and not record.kept
    assert names[6:] == [*(f"three.in_proj_weight[{x}]" for x in ("0:8", "8:16", "16:24")), "three.out_proj", "head"]
    assert record.layers[4].tensors == ("two.in_proj_weight", "two.in_proj_bias")
    record = calibrated(build("separable"), [build("separable", 1)], None, batches("separable", 16)).record
    names = [layer.name for layer in record.layers]
    assert names == ["stem", "norm", "grouped", "depthwise", "pointwise", "linear"]


def test_what_cannot_be_refit_is_listed() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ConvTranspose1d(2, 2, 3), nn.Linear(6, 3)]
    layers[2].weight = layers[0].weight
    module = nn.Sequential(nn.Unflatten(1, (2, 4)), *layers)
    record = calibrated(module, [deepcopy(module)], None, [torch.randn(30, 8)]).record
    assert [layer.name for layer in record.layers] == ["5"]
    shared, other = record.kept.values()
    assert (
        "is shared with another layer, or read several times" in shared
        and other == "is read by conv_transpose1d, which is no linear layer"
    )


class Stored(nn.Module):
    """A layer whose weight is stored the other way round, as GPT-2 has it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


def test_weights_may_be_stored_the_other_way_round() -> None:
    torch.manual_seed(0)
    merged, module = (nn.Sequential(Stored(6, 8), nn.ReLU(), Stored(8, 4)) for _ in range(2))
    found = calibrated(merged, [module], None, [torch.randn(200, 3, 6)], ridge=1e-6)
    assert [layer.name for layer in found.record.layers] == ["0", "2"]
    assert difference(module, found.module, torch.randn(8, 3, 6)) <= 1e-2


def test_layers_whose_values_hold_zipped_units_on_two_axes_keep_their_weights() -> None:
    module, other, alignment = zipped_twins("mixing")
    record = calibrated(module, [module, other], alignment, batches("mixing", 16)).record
    assert [layer.name for layer in record.layers] == ["embed", "up", "down", "head"]
    reason = "has zipped units on another axis than its channels, too"
    assert record.kept == {"words": reason, "back": reason}


LAST = {"linear.weight", "linear.bias"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"layers": False}, LAST),
        ({"layers": False, "last_layer": None, "centre": True}, {"linear.bias"}),
        ({"layers": False, "last_layer": None}, set()),
    ],
)
def test_what_is_not_refit_keeps_every_bit(options: dict[str, Any], expected: set[str]) -> None:
    merged, module = disturbed(build("resnet")), build("resnet")
    found = calibrated(merged, [module, module], None, batches("resnet", 32), **options)
    assert changed(merged, found.module) == expected


def test_the_last_layer_stays_where_only_the_others_are_refit() -> None:
    merged, module = disturbed(build("resnet")), build("resnet")
    found = calibrated(merged, [module, module], None, batches("resnet", 32), last_layer=None)
    names = changed(merged, found.module)
    assert names and not names & LAST
    assert names <= {name for layer in found.record.layers for name in layer.tensors}


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    """Names of the tensors that differ."""
    states = before.state_dict(), after.state_dict()
    return {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}


def test_centring_takes_the_mean_output_away() -> None:
    merged, data = build("resnet"), batches("resnet", 20, 12)
    found = calibrated(merged, [merged], None, data, layers=False, last_layer=None, centre=True)
    with torch.no_grad():
        before, after = merged(torch.cat(data)), found.module(torch.cat(data))
    torch.testing.assert_close(after, before - before.mean(dim=0), rtol=1e-4, atol=1e-5)
    assert found.record.centred == pytest.approx(float(before.mean(dim=0).norm()), rel=1e-4)


def test_the_last_layer_goes_to_the_mean_of_the_task_models_outputs() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
    models = [nn.Sequential(body, nn.Linear(8, 3)) for _ in range(2)]
    merged, data = nn.Sequential(body, nn.Linear(8, 3)), torch.randn(100, 6)
    found = calibrated(merged, models, None, [data], layers=False, ridge=1e-8)
    mean = (models[0][1].weight + models[1][1].weight) / 2
    torch.testing.assert_close(found.module[1].weight, mean, rtol=1e-3, atol=1e-3)


def test_heads_make_every_class_as_likely_as_its_own_model_says() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 16), nn.ReLU())
    models = [nn.Sequential(body, nn.Linear(16, 4)) for _ in range(2)]
    heads, data = [torch.randn(2, 4), torch.randn(2, 4)], torch.randn(400, 6)
    found = calibrated(models[0], models, None, [data], layers=False, last_layer="heads", heads=heads, ridge=1e-6)
    rows = nn.functional.normalize(torch.cat(heads), dim=1)
    with torch.no_grad():
        given = found.module(data) @ rows.T
        pairs = [(model(data), head) for model, head in zip(models, heads, strict=True)]
    own = [nn.functional.normalize(y, dim=1) @ nn.functional.normalize(head, dim=1).T for y, head in pairs]
    wanted = 100 * torch.cat([logits - logits.mean(dim=1, keepdim=True) for logits in own], dim=1)
    assert float((given - wanted).square().mean() / wanted.var()) < 0.2
    assert float(torch.corrcoef(torch.stack([given.flatten(), wanted.flatten()]))[0, 1]) > 0.9


def test_the_values_between_layers_may_lie_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    module, other, alignment = twins("gated")
    merged, data = disturbed(module), batches("gated", 8, 8)
    first = calibrated(merged, [module, other], alignment, data, centre=True)
    monkeypatch.setattr("mergeline.calibration.calibrate.Shelf", lambda: shelf.Shelf(in_memory=0))
    second = calibrated(merged, [module, other], alignment, iter(data), centre=True)
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(tensor, second.module.state_dict()[name]), name


def test_zipped_units_get_the_mean_over_all_units_in_them() -> None:
    """Two units of the first model and one of the second in one merged unit: it is the mean of the three."""
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2)) for _ in range(2)]
    symmetry = ml.derive_symmetry(models[0], torch.randn(2, 6))
    (family,) = symmetry.families
    zips = {family: Zip(torch.tensor([[0, 0, 1], [0, 2, 1]]), 3)}
    alignment = Alignment(symmetry, (symmetry.identity(), symmetry.identity()), zips=zips)
    merged = deepcopy(models[0])
    merged.load_state_dict(ml.merge_aligned([model.state_dict() for model in models], alignment))
    found = calibrated(disturbed(merged), models, alignment, [torch.randn(500, 6)], ridge=1e-6, last_layer=None)
    first, second = (model[0].weight.detach() for model in models)
    expected = torch.stack([(first[0] + first[1] + second[0]) / 3, (first[2] + second[2]) / 2, second[1]])
    active = found.module[0].weight.detach()
    torch.testing.assert_close(active, expected, rtol=0.3, atol=0.15)


def test_the_callers_modules_and_dtypes_stay_as_they_are() -> None:
    module = build("resnet").to(torch.bfloat16)
    before = deepcopy(module.state_dict())
    found = ml.calibrate(module, [module, module], None, batches("resnet", 16))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert {tensor.dtype for tensor in found.parameters()} == {torch.bfloat16} and not found.training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_inputs_may_have_the_dtype_of_the_module(dtype: torch.dtype) -> None:
    merged, module = disturbed(build("gated")).to(dtype), build("gated").to(dtype)
    data = [batch.to(dtype) for batch in batches("gated", 16, 8)]
    first = calibrated(merged, [module], None, data)
    second = calibrated(merged, [module], None, [batch.float() for batch in data])
    for name, tensor in first.module.state_dict().items():
        assert tensor.dtype == dtype and torch.equal(tensor, second.module.state_dict()[name]), name


@pytest.mark.parametrize("name", MODELS)
def test_the_first_batch_may_hold_one_example(name: str) -> None:
    merged, module = disturbed(build(name)), build(name)
    first = calibrated(merged, [module], None, batches(name, 1, 15))
    second = calibrated(merged, [module], None, batches(name, 15, 1))
    assert difference(first.module, second.module, batches(name, 8, seed=9)[0]) <= 1e-4


def test_empty_batches_say_nothing() -> None:
    merged, module, data = disturbed(build("resnet")), build("resnet"), batches("resnet", 16)
    empty = torch.ones(0, 1, 8, 8)
    first = calibrated(merged, [module], None, data)
    second = calibrated(merged, [module], None, [empty, *data, empty])
    assert not changed(first.module, second.module)
