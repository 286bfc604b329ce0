"""Every architecture: its symmetry is derived without help, is sound, and is as large as is known."""

import copy
import importlib
import math
import time
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from mergeline.alignment.apply import apply_alignment
from mergeline.alignment.solve import align
from mergeline.symmetry.derive import derive_symmetry
from mergeline.symmetry.permute import permute_tensor
from mergeline.symmetry.symmetry import Symmetry
from tests.symmetry.architectures import ARCHITECTURES, HELD_OUT, LISTED, UNLISTED

# log10 of the group order of each listed configuration, as the first implementation of the method measured it.
LOG10_ORDER = {
    "mlp": 88.7,
    "vgg_bn": 197.4,
    "vgg_flat1": 197.4,
    "resnet20_bn": 551.4,
    "resnet20_optA": 462.7,
    "resnet20_gn": 256.4,
    "resnet50": 1172.4,
    "resnext": 2142.9,
    "vit_timm": 796.9,
    "vit_timm_matmul": 796.9,
    "vit_timm_qknorm_ls": 755.4,
    "vit_timm_reg": 798.2,
    "vit_tv_mha": 543.0,
    "swin_timm": 772.0,
    "hf_vit": 290.1,
    "hf_resnet": 188.4,
    "hf_swin": 772.0,
    "hf_convnext": 482.6,
    "hf_bert": 234.1,
    "hf_distilbert": 269.5,
    "hf_gpt2": 543.0,
    "hf_llama": 169.3,
    "hf_t5": 506.4,
    "hf_t5_gated": 422.5,
    "hf_clip_vision": 290.1,
}
# The same for models that the rules were not written for, as they were found when they were first tried.
LOG10_ORDER_HELD_OUT = {
    "hf_gpt_neox": 121.8,
    "hf_bloom": 287.9,
    "hf_qwen3": 106.6,
    "hf_mixtral": 106.6,
    "hf_mamba": 75.8,
    "hf_deberta": 205.6,
    "hf_whisper": 343.1,
    "hf_wav2vec2": 145.8,
    "hf_segformer": 510.5,
}
ROUNDED_INSIDE = {
    "hf_llama",
    "hf_t5",
    "hf_t5_gated",
    "hf_qwen3",
    "hf_mixtral",
    "hf_mamba",
}  # their norms or positions compute in float32 whatever comes in


@dataclass
class Derived:
    """An architecture's model with the symmetry that was derived for it."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    symmetry: Symmetry
    seconds: float

    @property
    def tolerance(self) -> float:
        return 1e-5 if self.name in ROUNDED_INSIDE else 1e-9


@pytest.fixture(scope="module", params=ARCHITECTURES)
def derived(request) -> Derived:
    architecture = ARCHITECTURES[request.param]
    pytest.importorskip(architecture.needs)
    torch.manual_seed(0)
    module, inputs = architecture.build().eval(), architecture.inputs()
    start = time.perf_counter()
    symmetry = derive_symmetry(module, inputs)
    return Derived(request.param, module, inputs, symmetry, time.perf_counter() - start)


def test_the_tables_have_every_architecture():
    assert set(LOG10_ORDER) == set(LISTED)
    assert set(LOG10_ORDER_HELD_OUT) == set(HELD_OUT)
    assert all(architecture.sizes for architecture in UNLISTED.values())


def test_permuting_units_leaves_the_function_as_it_is(derived, record_property):
    record_property("derive seconds", round(derived.seconds, 3))
    print(f"{derived.name}: derived in {derived.seconds:.2f} s")
    for seed in range(2):
        assert derived.symmetry.verify(derived.module, derived.inputs, seed=seed) <= derived.tolerance


def test_the_group_is_as_large_as_is_known(derived, record_property):
    order = derived.symmetry.log10_order()
    record_property("log10 order", round(order, 2))
    published = {**LOG10_ORDER, **LOG10_ORDER_HELD_OUT}
    if derived.name in published:
        assert order >= published[derived.name] - 0.05
    else:
        sizes = ARCHITECTURES[derived.name].sizes
        assert order >= sum(math.lgamma(size + 1) for size in sizes) / math.log(10) - 1e-6


def test_the_outputs_respond_to_what_makes_and_reads_units(derived):
    """But for a SegFormer whose images are so small that each query sees one key."""
    assert derived.symmetry.notes["verified"].startswith("in part" if derived.name == "hf_segformer" else "yes")


def test_the_text_says_the_same_and_is_still_sound(derived):
    again = Symmetry.from_yaml(derived.symmetry.to_yaml())
    assert again == derived.symmetry
    assert again.verify(derived.module, derived.inputs) <= derived.tolerance


def test_every_tensor_of_the_symmetry_is_in_the_state_dict(derived):
    shapes = {name: tuple(tensor.shape) for name, tensor in derived.module.state_dict().items()}
    derived.symmetry.check_shapes(derived.name, shapes)
    named = [name for key, layout in derived.symmetry.parameters.items() for name in (key, *layout.tied)]
    assert len(named) == len(set(named))
    assert set(named) <= set(shapes)


def test_a_random_alignment_keeps_the_outputs_in_float32(derived):
    before = derived.module(*derived.inputs)
    state = {name: tensor.clone() for name, tensor in derived.module.state_dict().items()}
    permutations = derived.symmetry.random_permutations(seed=1)
    moved = {}
    for key, layout in derived.symmetry.parameters.items():
        permuted = permute_tensor(state[key], layout, derived.symmetry, permutations)
        moved.update(dict.fromkeys((key, *layout.tied), permuted))
    assert any(not torch.equal(tensor, state[name]) for name, tensor in moved.items())
    try:
        derived.module.load_state_dict({**state, **moved})
        after = derived.module(*derived.inputs)
    finally:
        derived.module.load_state_dict(state)
    assert (after - before).abs().max() <= 1e-4 * before.abs().max()


def test_aligning_two_models_keeps_the_function(derived):
    """Also where groups share families, as heads do: matched by weights, the moved model computes what it did."""
    other = copy.deepcopy(derived.module)
    other.load_state_dict(apply_alignment(other.state_dict(), derived.symmetry.random_alignment(1), 0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in other.parameters():
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))
        before = other(*derived.inputs)
        alignment = align([derived.module, other], derived.symmetry, space="weight", sweeps=2)
        assert any(
            not torch.equal(permutation, alignment.permutations[0][family])
            for family, permutation in alignment.permutations[1].items()
        )
        other.load_state_dict(apply_alignment(other.state_dict(), alignment, 1))
        after = other(*derived.inputs)
    assert (after - before).abs().max() <= 1e-4 * before.abs().max()


@pytest.mark.parametrize(
    ("package", "build"),
    [
        ("timm", lambda timm: timm.create_model("resnet18", num_classes=5)),
        ("timm", lambda timm: timm.create_model("vit_tiny_patch16_224", num_classes=5, depth=1)),
        ("torchvision", lambda torchvision: torchvision.models.mobilenet_v3_small(num_classes=5)),
        ("torchvision", lambda torchvision: torchvision.models.shufflenet_v2_x0_5(num_classes=5)),
    ],
    ids=["timm resnet", "timm vit", "torchvision mobilenet", "torchvision shufflenet"],
)
def test_models_of_other_libraries_are_sound_where_they_import(package, build):
    library = pytest.importorskip(package)
    if package == "torchvision":
        importlib.import_module("torchvision.models")
    torch.manual_seed(0)
    module, inputs = build(library).eval(), (torch.randn(2, 3, 224, 224),)
    symmetry = derive_symmetry(module, inputs)
    assert symmetry.verify(module, inputs) <= 1e-9
