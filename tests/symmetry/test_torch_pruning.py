"""Channels that Torch-Pruning removes together are those that move together here, for plain nets."""

import pytest
import torch
from torch import nn

from mergeline.symmetry.derive import derive_symmetry
from mergeline.symmetry.symmetry import Symmetry
from tests.symmetry.architectures.convolutional import BasicResNet, BottleneckResNet, mlp, vgg
from tests.symmetry.architectures.unlisted_convolutional import MobileNet, conv_norm

pruning = pytest.importorskip("torch_pruning", reason="the cross-check needs Torch-Pruning")

Members = frozenset[tuple[str, int]]  # a weight and one of its axes

NETS = {
    "mlp": lambda: mlp(48, 7, 5, 6, 3),
    "vgg": lambda: vgg((4, None, 6, None, 5, None), 8, batch_norm=True),
    "vgg, flattened": lambda: vgg((4, None, 6, None), 8, batch_norm=True),
    "resnet": lambda: BasicResNet((2, 1, 2), (4, 6, 8)),
    "bottlenecks": lambda: BottleneckResNet((2, 1), planes=4),
    "mobilenet": MobileNet,
    "depthwise": lambda: nn.Sequential(conv_norm(3, 6), conv_norm(6, 6, groups=6), nn.Conv2d(6, 2, 1)),
}


def pruned_together(module: nn.Module, inputs: torch.Tensor) -> set[Members]:
    """The weights' axes of each of Torch-Pruning's groups; those that would cut the module's outputs are left out."""
    names = {child: name for name, child in module.named_modules()}
    graph = pruning.DependencyGraph().build_dependency(module, example_inputs=inputs)
    removed_rows = {
        nn.Conv2d: pruning.prune_conv_out_channels,
        nn.Linear: pruning.prune_linear_out_channels,
    }
    groups = set()
    for layer in names:
        remove = removed_rows.get(type(layer))  # type: ignore[arg-type]
        if remove is None or (isinstance(layer, nn.Conv2d) and layer.groups > 1):
            continue
        members = set()
        for item in graph.get_pruning_group(layer, remove, idxs=[0]).items:
            weighted = item.dep.target.module
            if weighted in names and hasattr(weighted, "weight"):
                reads = item.dep.handler.__name__ == "prune_in_channels"
                members.add((f"{names[weighted]}.weight", int(reads)))
        groups.add(frozenset(members))
    return {members for members in groups if any(axis == 1 for _, axis in members)}


def moved_together(symmetry: Symmetry) -> set[Members]:
    """The weights' axes of each group of the symmetry."""
    return {
        frozenset((axis.param, axis.dim) for axis in group.axes if axis.param.endswith("weight"))
        for group in symmetry.groups.values()
    }


@pytest.mark.parametrize("name", NETS)
def test_channels_that_are_pruned_together_move_together(name):
    torch.manual_seed(0)
    module, inputs = NETS[name]().eval(), torch.randn(2, 3, 8, 8)
    if name == "mlp":
        inputs = torch.randn(2, 48)
    assert pruned_together(module, inputs) == moved_together(derive_symmetry(module, (inputs,)))
