"""The normalisation reset: the authors' numbers, and nothing but the statistics changes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mergeline.calibration.normalization import Batch, reset_normalization
from mergeline.errors import InputError
from mergeline.models.resnet import resnet

ORACLE_CASES = [
    ("bn_resnet20_perm", "useperm"),
    ("bn_resnet20_perm", "act"),
    ("bn_resnet_3models", "act_useperm"),
    ("bn_resnet_indep", "act_iws_fs_useperm"),
    ("bn_resnet_indep", "weight_zip"),
]


@pytest.mark.parametrize(("case", "mode"), ORACLE_CASES)
def test_the_reset_gives_the_oracles_statistics_and_logits(case: str, mode: str, oracle: Callable[[str], Path]) -> None:
    folder = oracle(f"mudsc/{case}")
    manifest = json.loads((folder / "manifest.json").read_text())
    arch, stored = manifest["arch"], load_file(folder / manifest["modes"][mode]["file"])
    sizes = {"blocks": arch["blocks"], "widths": arch["widths"], "outputs": arch["classes"]}
    merged = resnet(**sizes, shortcut_kernel=3, in_channels=3).eval()
    merged.load_state_dict({name[7:]: tensor for name, tensor in stored.items() if name.startswith("merged/")})
    images = load_file(folder / "inputs.safetensors")["calib"].float()

    reset = reset_normalization(merged, images.split(manifest["calib_batches"]))

    expected = {name[15:]: tensor for name, tensor in stored.items() if name.startswith("merged_bnreset/")}
    assert expected
    for name, tensor in expected.items():
        difference = (reset.state_dict()[name] - tensor).abs().max()
        assert difference <= 1e-5 * tensor.abs().max(), name
    with torch.no_grad():
        before, after = merged(images), reset(images)
    for logits, name in ((before, "logits_merged"), (after, "logits_merged_bnreset")):
        assert (logits - stored[name]).abs().max() <= 2e-5 * stored[name].abs().max(), name


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Dropout(0.5), nn.BatchNorm1d(4)).eval()


def batches(*sizes: int) -> list[Tensor]:
    return list(torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(1)).split(sizes))


def test_each_batch_counts_the_same_whatever_its_size() -> None:
    module, data = model(), batches(5, 20)
    with torch.no_grad():
        outputs = [module[0](batch) for batch in data]
    reset = reset_normalization(module, data)
    expected = torch.stack([output.mean(0) for output in outputs]).mean(0)
    torch.testing.assert_close(reset.state_dict()["1.running_mean"], expected)
    expected = torch.stack([output.var(0) for output in outputs]).mean(0)
    torch.testing.assert_close(reset.state_dict()["1.running_var"], expected)


def test_the_callers_module_and_its_settings_stay_as_they_are() -> None:
    module = model()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    reset = reset_normalization(module, batches(8, 8))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert reset is not module and not any(part.training for part in reset.modules())
    assert [reset.get_submodule(name).momentum for name in ("1", "3")] == [0.3, 0.1]
    assert not torch.equal(reset.state_dict()["1.running_mean"], module.state_dict()["1.running_mean"])
    for name, parameter in reset.named_parameters():
        assert parameter.requires_grad and torch.equal(parameter, before[name]), name


def test_dropout_stays_off_while_measuring() -> None:
    assert torch.equal(*(reset_normalization(model(), batches(8)).state_dict()["3.running_var"] for _ in range(2)))


@pytest.mark.parametrize("given", [lambda x: (x, torch.zeros(len(x))), lambda x: {"input": x}])
def test_inputs_may_come_before_others_in_a_tuple_or_by_name(given: Callable[[Tensor], Batch]) -> None:
    data = batches(6, 6)
    plain, other = reset_normalization(model(), data), reset_normalization(model(), [given(batch) for batch in data])
    assert torch.equal(plain.state_dict()["3.running_var"], other.state_dict()["3.running_var"])


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.BatchNorm1d(4, track_running_stats=False)])
def test_a_model_without_running_statistics_is_copied_and_reads_nothing(norm: nn.Module) -> None:
    module = nn.Sequential(nn.Linear(3, 4), norm)
    copy = reset_normalization(module, iter(["never looked at"]))  # type: ignore[arg-type]
    assert copy is not module and not copy.training
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in copy.state_dict().items())


def test_no_batches_are_refused() -> None:
    with pytest.raises(InputError, match="no batches"):
        reset_normalization(model(), [])


def test_statistics_that_are_not_finite_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="statistics of 1 are not finite"):
        reset_normalization(model(), [torch.full((4, 3), torch.inf)])
