"""The reference network computes what the authors' networks compute, and starts the same from the same seed."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mergeline.errors import InputError
from mergeline.models.resnet import resnet

CASES = ["bn_resnet20_perm", "bn_resnet_3models", "bn_resnet_indep", "gn_resnet_indep", "gn_resnet_perm"]


def network(arch: dict[str, Any]) -> torch.nn.Module:
    """The network that an oracle manifest describes; its norm is 'batchnorm' or 'groupnorm(<groups>)'."""
    sizes = {"blocks": arch["blocks"], "widths": arch["widths"], "outputs": arch["classes"]}
    groups = re.search(r"\d+", arch["norm"])
    norm: dict[str, Any] = {"norm": "group", "groups": int(groups[0])} if groups else {"norm": "batch"}
    return resnet(**sizes, **norm, shortcut_kernel=3, in_channels=3).eval()


@pytest.mark.parametrize("case", CASES)
def test_the_forward_pass_is_the_oracles(case: str, oracle: Callable[[str], Path]) -> None:
    folder = oracle(f"mudsc/{case}")
    inputs, common = load_file(folder / "inputs.safetensors"), load_file(folder / "common.safetensors")
    module = network(json.loads((folder / "manifest.json").read_text())["arch"])
    expected = {name[-1]: logits for name, logits in common.items() if name.startswith("logits/")}
    assert len(expected) >= 2
    for model, logits in expected.items():
        module.load_state_dict({n[2:]: t for n, t in inputs.items() if n.startswith(f"{model}/")})
        with torch.no_grad():
            difference = module(inputs["calib"].float()) - logits
        assert difference.abs().max() <= 1e-5 * logits.abs().max(), model


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.nn.utils.parameters_to_vector(resnet(width=4, outputs=8).parameters())

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_the_module_names_are_those_of_cifar_resnets() -> None:
    blocks = {f"layer{layer}.0.{name}" for layer in (1, 2, 3) for name in ("conv1", "bn1", "conv2", "bn2")}
    shortcuts = {f"layer{layer}.0.shortcut.{i}" for layer in (2, 3) for i in (0, 1)}
    owners = {name.rpartition(".")[0] for name in resnet().state_dict()}
    assert owners == {"conv1", "bn1", "linear"} | blocks | shortcuts


@pytest.mark.parametrize(("stem_stride", "expected"), [(1, 7), (2, 4)])
def test_the_picture_shrinks_by_the_strides(stem_stride: int, expected: int) -> None:
    module = resnet(width=4, stem_stride=stem_stride).eval()
    sizes = []
    module.layer3.register_forward_hook(lambda _m, _i, output: sizes.append(output.shape[-2:]))
    assert module(torch.zeros(2, 1, 28, 28)).shape == (2, 384)
    assert sizes == [(expected, expected)]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"blocks": (1, 1)}, "three positive numbers"),
        ({"widths": (4, 0, 4)}, "three positive numbers"),
        ({"shortcut_kernel": 2}, "must be odd"),
        ({"norm": "layer"}, "'batch' or 'group'"),
        ({"norm": "group", "width": 12}, "do not divide into 8 groups"),
    ],
)
def test_sizes_that_make_no_network_are_refused(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resnet(**sizes)
