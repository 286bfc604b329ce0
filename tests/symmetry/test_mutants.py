"""The proof is proved: a symmetry with one wrong entry is refused, and so is what a wrong rule derives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from mergeline.errors import InputError
from mergeline.symmetry.derive import derive_symmetry
from mergeline.symmetry.layout import Blocks, Fixed, Layout, Segments, Units, families_of, width
from mergeline.symmetry.symmetry import Symmetry
from mergeline.symmetry.units import Family
from mergeline.symmetry.verify import TOLERANCE, output_change, require_sound
from tests.symmetry.architectures import ARCHITECTURES
from tests.symmetry.architectures.convolutional import BasicResNet, BottleneckResNet, group_norm
from tests.symmetry.architectures.swin import Swin
from tests.symmetry.architectures.vision_transformers import TorchvisionViT, VisionTransformer

SMALL = {
    "resnet": lambda: BasicResNet((1, 1), (4, 6)),
    "group norm": lambda: BasicResNet((1, 1), (4, 6), norm=group_norm(2)),
    "resnext": lambda: BottleneckResNet((1, 1), planes=3, groups=2),
    "vit": lambda: VisionTransformer(dim=6, depth=1, heads=2, hidden=5, qk_norm=True, scaled=True),
    "vit of torchvision": lambda: TorchvisionViT(dim=6, depth=1, heads=3),
    "swin": lambda: Swin(dim=4, heads=(2, 2)),
}
UNLISTED = (
    "mlp",
    "unet",
    "densenet",
    "mobilenet",
    "gated convolution",
    "tied autoencoder",
    "unrolled cells",
    "lstm",
    "fused qkv (h, 3, d)",
    "alibi",
    "rotary decoder",
    "stacked experts",
    "latent cross attention",
)
# A constant added to all scores of a query changes no weight, so the bias of keys has no effect at all.
NO_EFFECT = {("alibi", "k.bias"), ("vit", "blocks.0.attn.k_norm.bias")}


@dataclass(frozen=True)
class Proved:
    """A model, inputs, and the symmetry that was derived for it."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    symmetry: Symmetry


@pytest.fixture(scope="module", params=[*SMALL, *UNLISTED])
def proved(request) -> Proved:
    torch.manual_seed(0)
    name = request.param
    module = (SMALL[name] if name in SMALL else ARCHITECTURES[name].build)().eval()
    side = 32 if name in ("swin", "resnext") else 16
    inputs = (torch.randn(2, 3, side, side),) if name in SMALL else ARCHITECTURES[name].inputs()
    return Proved(name, module, inputs, derive_symmetry(module, inputs))


def with_layout(symmetry: Symmetry, layout: Layout, tensor: str, dim: int) -> Symmetry:
    """One axis of one tensor said to be made otherwise."""
    entry = symmetry.parameters[tensor]
    dims = (*entry.dims[:dim], layout, *entry.dims[dim + 1 :])
    return replace(symmetry, parameters={**symmetry.parameters, tensor: replace(entry, dims=dims)}, sites=())


def entries(symmetry: Symmetry) -> Iterator[tuple[str, int, Layout]]:
    """Every axis that carries units: tensor, axis, layout."""
    for tensor, entry in symmetry.parameters.items():
        for dim, layout in enumerate(entry.dims):
            if not isinstance(layout, Fixed):
                yield tensor, dim, layout


def renamed(layout: Layout, old: str, new: str) -> Layout:
    """The layout with one family in the place of another."""
    match layout:
        case Units(family):
            return Units(new if family == old else family)
        case Blocks(family, inner):
            return Blocks(new if family == old else family, renamed(inner, old, new))
        case Segments(parts):
            return Segments(tuple(renamed(part, old, new) for part in parts))
        case _:
            return layout


def own_family(symmetry: Symmetry, layout: Layout, family: str) -> tuple[Symmetry, Layout]:
    """A family in the place of another one in a layout, and with it families for the units that lie over it."""
    families = dict(symmetry.families)
    for name in dict.fromkeys(families_of(layout)):
        over = families[name].over
        if name == family or family in over:
            over = tuple(f"{family}'" if outer == family else outer for outer in over)
            families[f"{name}'"] = Family(f"{name}'", families[name].size, over)
            layout = renamed(layout, name, f"{name}'")
    return replace(symmetry, families=families, sites=()), layout


def is_refused(mutant: Symmetry, proved: Proved) -> bool:
    try:
        return output_change(mutant, proved.module, proved.inputs) > 10 * TOLERANCE
    except InputError:  # what the layouts say of the tensors contradicts itself
        return True


def survivors(mutants: Iterator[tuple[str, Symmetry]], proved: Proved) -> list[str]:
    """Mutants that the proof lets pass, but for those without any effect."""
    return [
        f"{tensor}: {mutant.parameters[tensor]}"
        for tensor, mutant in mutants
        if (proved.name, tensor) not in NO_EFFECT and not is_refused(mutant, proved)
    ]


def test_the_unchanged_symmetry_passes(proved):
    assert not is_refused(proved.symmetry, proved)


def test_an_axis_that_is_left_out_is_missed(proved):
    sizes = proved.symmetry.sizes
    mutants = (
        (tensor, with_layout(proved.symmetry, Fixed(width(layout, sizes)), tensor, dim))
        for tensor, dim, layout in entries(proved.symmetry)
        if not counts_for_others(proved.symmetry, tensor, layout) and is_shared(proved.symmetry, layout)
    )
    assert not survivors(mutants, proved)


def counts_for_others(symmetry: Symmetry, tensor: str, layout: Layout) -> bool:
    """Whether other axes of the tensor have units over the units of this one, so that it cannot be left out alone."""
    own = set(families_of(layout))
    rest = {family for dim in symmetry.parameters[tensor].dims if dim != layout for family in families_of(dim)}
    return any(own & set(symmetry.families[family].over) for family in rest)


def is_shared(symmetry: Symmetry, layout: Layout) -> bool:
    """Whether another axis, too, has these units: those of one axis alone may as well stay where they are."""
    everywhere = [family for _, _, other in entries(symmetry) for family in set(families_of(other))]
    return any(everywhere.count(family) > 1 for family in families_of(layout))


def test_an_axis_with_units_of_its_own_is_caught(proved):
    def mutants() -> Iterator[tuple[str, Symmetry]]:
        for tensor, dim, layout in entries(proved.symmetry):
            if counts_for_others(proved.symmetry, tensor, layout):
                continue
            for family in dict.fromkeys(families_of(layout)):
                mutant = with_layout(*own_family(proved.symmetry, layout, family), tensor, dim)
                if any(family in families_of(other) for _, _, other in entries(mutant)):
                    yield tensor, mutant

    assert not survivors(mutants(), proved)


def test_segments_in_another_order_are_caught(proved):
    def mutants() -> Iterator[tuple[str, Symmetry]]:
        for tensor, dim, layout in entries(proved.symmetry):
            if isinstance(layout, Segments) and layout.parts[0] != layout.parts[-1]:
                turned = Segments((*layout.parts[1:], layout.parts[0]))
                yield tensor, with_layout(proved.symmetry, turned, tensor, dim)

    assert not survivors(mutants(), proved)


def test_blocks_taken_for_free_units_are_caught(proved):
    """All positions of an axis exchanged freely where only blocks and the units inside them may be."""

    def mutants() -> Iterator[tuple[str, Symmetry]]:
        blocks = {layout for _, _, layout in entries(proved.symmetry) if isinstance(layout, Blocks)}
        for layout in blocks:
            free = Family("free", width(layout, proved.symmetry.sizes))
            mutant = replace(proved.symmetry, families={**proved.symmetry.families, "free": free}, sites=())
            tensors = [(tensor, dim) for tensor, dim, other in entries(proved.symmetry) if other == layout]
            for tensor, dim in tensors:
                mutant = with_layout(mutant, Units("free"), tensor, dim)
            yield tensors[0][0], mutant

    assert not survivors(mutants(), proved)


def test_axes_of_a_matrix_that_are_exchanged_are_caught(proved):
    def mutants() -> Iterator[tuple[str, Symmetry]]:
        for tensor, entry in proved.symmetry.parameters.items():
            if len(entry.dims) < 2 or entry.dims[0] == entry.dims[1]:
                continue
            dims = (entry.dims[1], entry.dims[0], *entry.dims[2:])
            swapped = {**proved.symmetry.parameters, tensor: replace(entry, dims=dims)}
            yield tensor, replace(proved.symmetry, parameters=swapped, sites=())

    assert not survivors(mutants(), proved)


def test_a_refusal_names_family_tensors_and_operations():
    torch.manual_seed(0)
    module, inputs = SMALL["resnet"]().eval(), (torch.randn(2, 3, 16, 16),)
    symmetry = derive_symmetry(module, inputs)
    broken = with_layout(symmetry, Fixed(4), "layer1.0.bn1.bias", 0)
    (family,) = set(families_of(symmetry.parameters["layer1.0.bn1.bias"].dims[0]))
    with pytest.raises(InputError, match=rf"'{family}' changes the output.*layer1\.0\.conv1\.weight"):
        require_sound(broken, module, inputs)
