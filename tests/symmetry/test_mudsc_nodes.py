"""The authors' hand-written unit groups (MuDSC) against the derived ones: equal for ResNets, wrong for the ViT."""

import json
import math
from dataclasses import replace

import pytest
import torch

from mergeline.symmetry.derive import derive_symmetry
from mergeline.symmetry.layout import Blocks, Layout, Segments, Units
from mergeline.symmetry.symmetry import CONSUMER, Family, Symmetry
from mergeline.symmetry.verify import output_change
from tests.symmetry.architectures.convolutional import BasicResNet, group_norm
from tests.symmetry.architectures.vision_transformers import VisionTransformer

Entry = tuple[str, int, bool]  # parameter, axis, whether it reads the units

RESNETS = ["bn_resnet20_perm", "bn_resnet_indep", "bn_resnet_3models", "gn_resnet_perm", "gn_resnet_indep"]
VITS = ["vit_perm", "vit_indep"]


def nodes_of(manifest) -> list[dict]:
    return list(manifest["nodes"].values())


def entries(node) -> set[Entry]:
    return {(entry["param"], entry["axis"], entry["role"] == "in") for entry in node["weights"]}


def resnet(manifest) -> BasicResNet:
    arch = manifest["arch"]
    groups = max(node["groups"] for node in nodes_of(manifest))
    norm = group_norm(groups) if groups > 1 else torch.nn.BatchNorm2d
    return BasicResNet(arch["blocks"], arch["widths"], arch["classes"], norm, shortcut=3)


def vit(manifest) -> VisionTransformer:
    arch = manifest["arch"]
    return VisionTransformer(
        arch["dim"],
        arch["depth"],
        arch["heads"],
        arch["mlp_hidden"],
        arch["img"],
        arch["patch"],
        arch["classes"],
        norm_before=arch["norm_pre"],
        fused=False,
    )


def pictures(side: int) -> tuple[torch.Tensor]:
    return (torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)),)


@pytest.fixture
def case(request, oracle):
    """One manifest of theirs, our model of the same architecture, inputs, and the symmetry derived from it."""
    manifest = json.loads((oracle("mudsc") / request.param / "manifest.json").read_text())
    torch.manual_seed(0)
    module = (vit if manifest["arch"]["type"] == "vit" else resnet)(manifest).eval()
    inputs = pictures(manifest["arch"].get("img", 16))
    return manifest, module, inputs, derive_symmetry(module, inputs)


@pytest.mark.parametrize("case", RESNETS, indirect=True)
def test_resnet_groups_are_their_nodes(case):
    manifest, _, _, symmetry = case
    ours = list(symmetry.groups.values())
    members = [{(axis.param, axis.dim, axis.role == CONSUMER) for axis in group.axes} for group in ours]
    for node in nodes_of(manifest):
        assert entries(node) in members
        group = ours[members.index(entries(node))]
        single = node["groups"] == group.size  # groups of one channel each: channels that move freely
        assert group.blocks == (1 if single else node["groups"])
    assert len(ours) == len(manifest["nodes"])


def split_projection(param: str, dim: int, start: int, size: int) -> str:
    """Their name of a part of a tensor: queries, keys and values of a fused projection are apart."""
    fused = ".qkv." in param and dim == 0
    return f"{param}_{'qkv'[start // size]}" if fused else param


def join_inputs(param: str, axis: int) -> str:
    """Their parts of the fused projection share its input axis, which is one axis of ours."""
    return param[:-2] if ".qkv." in param and axis == 1 else param


@pytest.mark.parametrize("case", VITS, indirect=True)
def test_vit_groups_are_their_nodes_but_for_the_tied_heads(case):
    manifest, _, _, symmetry = case
    ours = {}
    for name, group in symmetry.groups.items():
        ours[name] = {
            (split_projection(axis.param, axis.dim, axis.span.start, group.size), axis.dim, axis.role == CONSUMER)
            for axis in group.axes
        }
    theirs = [
        {(join_inputs(param, axis), axis, reads) for param, axis, reads in entries(node)} for node in nodes_of(manifest)
    ]
    for members in theirs:
        assert members in ours.values()
    assert len(ours) == len(theirs)
    # Same members; but the heads of queries and keys and the heads of values are one family here, two of theirs.
    for layer in range(manifest["arch"]["depth"]):
        scores, values = heads_of(symmetry, ours, layer)
        assert scores == values
        assert symmetry.sizes[scores] == manifest["arch"]["heads"]


def heads_of(symmetry: Symmetry, members: dict[str, set[Entry]], layer: int) -> tuple[str, str]:
    """The outer families of the groups that hold a layer's queries and its values."""
    outer = []
    for part in "qv":
        entry = (f"blocks.{layer}.attn.qkv.weight_{part}", 0, False)
        (group,) = (name for name, entries in members.items() if entry in entries)
        outer.append(symmetry.groups[group].structure[0])
    return outer[0], outer[1]


@pytest.mark.parametrize("case", VITS, indirect=True)
def test_untying_the_heads_gives_their_group_which_is_no_symmetry(case):
    manifest, module, inputs, symmetry = case
    depth, heads = manifest["arch"]["depth"], manifest["arch"]["heads"]
    theirs = symmetry
    for layer in range(depth):
        theirs = untie_values(theirs, f"blocks.{layer}.attn")
    gained = depth * math.lgamma(heads + 1) / math.log(10)
    assert theirs.log10_order() == pytest.approx(symmetry.log10_order() + gained)
    assert symmetry.verify(module, inputs) <= 1e-9
    assert output_change(theirs, module, inputs, only=["blocks.0.attn.heads_of_values"]) > 1e-2


def untie_values(symmetry: Symmetry, attention: str) -> Symmetry:
    """Give the values of a fused projection, and what reads them, a family of heads of their own."""
    fused = symmetry.parameters[f"{attention}.qkv.weight"].dims[0]
    assert isinstance(fused, Segments)
    values = fused.parts[2]
    assert isinstance(values, Blocks) and isinstance(values.inner, Units)
    heads, width = values.family, values.inner.family
    own = Family(f"{attention}.heads_of_values", symmetry.sizes[heads])
    families = {**symmetry.families, own.name: own, width: Family(width, symmetry.sizes[width], (own.name,))}

    def untied(layout: Layout) -> Layout:
        match layout:
            case Blocks(family, Units(inner)) if (family, inner) == (heads, width):
                return Blocks(own.name, Units(inner))
            case Segments(parts):
                return Segments(tuple(untied(part) for part in parts))
            case _:
                return layout

    parameters = {
        name: replace(layout, dims=tuple(untied(dim) for dim in layout.dims))
        for name, layout in symmetry.parameters.items()
    }
    return Symmetry(families, parameters)
