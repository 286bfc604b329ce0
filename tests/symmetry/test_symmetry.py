"""The symmetry of the reference ResNet as data, its proof, and that the proof finds faults."""

import dataclasses

import pytest
import torch

from mergeline.errors import InputError
from mergeline.models.resnet import resnet
from mergeline.symmetry.layout import parse
from mergeline.symmetry.symmetry import Family, Site, Symmetry, parameter_layout
from mergeline.symmetry.verify import output_change, require_sound
from tests.derived import symmetry_of

INPUTS = (torch.randn(3, 1, 12, 12, generator=torch.Generator().manual_seed(0)),)
MODELS = {
    "shipped": {"blocks": (1, 1, 1), "width": 4, "outputs": 7, "stem_stride": 2},
    "deep": {"blocks": (3, 3, 3), "width": 4, "outputs": 7},
    "wide shortcut": {"blocks": (2, 1, 2), "width": 4, "outputs": 7, "shortcut_kernel": 3},
    "group norm": {"blocks": (2, 1, 1), "width": 4, "outputs": 7, "norm": "group", "groups": 2},
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return resnet(**MODELS[request.param])


def test_permuting_units_leaves_the_function_as_it_is(model):
    symmetry = symmetry_of(model)
    for seed in range(3):
        assert symmetry.verify(model, INPUTS, seed=seed) <= 1e-9
    require_sound(symmetry, model, INPUTS)


def test_every_family_moves_something(model):
    symmetry = symmetry_of(model)
    for group in symmetry.groups.values():
        assert any(axis.role == "out" for axis in group.axes), group.name
        assert any(axis.role == "in" for axis in group.axes), group.name


def test_a_missing_or_wrong_entry_is_caught_and_named(model):
    symmetry = symmetry_of(model)
    for name, layout in symmetry.parameters.items():
        frozen = parameter_layout([f"_{n}" for n in model.state_dict()[name].shape], layout.roles)
        broken = dataclasses.replace(symmetry, parameters={**symmetry.parameters, name: frozen})
        assert output_change(broken, model, INPUTS) > 1e-3, name
    with pytest.raises(InputError, match=r"'layer1\.0\.conv1.*layer1\.0\.bn1\.bias.*layer1\.0\.conv2\.conv2d"):
        size = model.state_dict()["layer1.0.bn1.weight"].shape[0]
        frozen = parameter_layout([f"_{size}"], ["elt"])
        require_sound(
            dataclasses.replace(symmetry, parameters={**symmetry.parameters, "layer1.0.bn1.weight": frozen}),
            model,
            INPUTS,
        )


def test_order_of_the_group_is_counted():
    torch.manual_seed(0)
    symmetry = symmetry_of(resnet(blocks=(3, 3, 3), width=16, outputs=10))
    assert symmetry.log10_order() == pytest.approx(551.4, abs=0.1)
    assert len(symmetry.groups) == 12


def test_groups_of_channels_move_whole():
    torch.manual_seed(0)
    symmetry = symmetry_of(resnet(**MODELS["group norm"]))
    group = symmetry.groups["layer2.0.conv2.inner"]
    assert (group.size, group.blocks) == (8, 2)
    assert group.structure == ("layer2.0.conv2.groups", "layer2.0.conv2.inner")


def test_every_family_can_be_tried_alone(model):
    symmetry = symmetry_of(model)
    assert all(output_change(symmetry, model, INPUTS, only=[family]) <= 1e-9 for family in symmetry.families)


def test_text_and_symmetry_say_the_same(model):
    symmetry = symmetry_of(model)
    again = Symmetry.from_yaml(symmetry.to_yaml())
    assert again == symmetry
    assert again.to_yaml() == symmetry.to_yaml()


@pytest.mark.parametrize("text", ["families: 3", "[]", "families: {a: {}}\nparameters: {}", "just words"])
def test_text_that_is_no_symmetry_is_refused(text):
    with pytest.raises(InputError, match="symmetry"):
        Symmetry.from_yaml(text)


def test_names_that_are_not_declared_are_refused():
    with pytest.raises(InputError, match="family 'ghost', which is not declared"):
        Symmetry({}, {"w": parameter_layout(["ghost"], ["out"])})
    with pytest.raises(InputError, match="lies over 'ghost', which is not declared"):
        Symmetry({"a": Family("a", 2, ("ghost",))}, {"w": parameter_layout(["a"], ["out"])})
    site = Site("ghost", "relu", ((1, parse("a")),), "use", "linear")
    with pytest.raises(InputError, match="group 'ghost', which has no axes"):
        Symmetry({"a": Family("a", 2)}, {"w": parameter_layout(["a"], ["out"])}, (site,))


def test_a_checkpoint_of_another_shape_is_named(model):
    symmetry = symmetry_of(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=r"other\.safetensors: tensor 'conv1\.weight' has shape \[9, 1, 3, 3\]"):
        symmetry.check_shapes("other.safetensors", {**shapes, "conv1.weight": (9, 1, 3, 3)})
    del shapes["bn1.bias"]
    with pytest.raises(InputError, match=r"'bn1\.bias' of the architecture is missing"):
        symmetry.check_shapes("other.safetensors", shapes)
