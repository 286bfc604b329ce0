"""Heads of single tasks: not merged, taken from their own checkpoint, in the unit order of the merged model."""

import pytest
import torch

import mergeline as ml
from mergeline.alignment.apply import AlignedReader
from mergeline.checkpoints.heads import head_tensors, patterns_of, with_one_head
from mergeline.checkpoints.readers import TensorReader
from mergeline.errors import InputError
from mergeline.models.load import load_model

HERE = __name__


def network(classes: int = 3) -> torch.nn.Module:
    layers = {"body": torch.nn.Linear(4, 6), "act": torch.nn.ReLU(), "head": torch.nn.Linear(6, classes)}
    return torch.nn.Sequential(torch.nn.modules.container.OrderedDict(layers))


def tied_network() -> torch.nn.Module:
    module = torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False))
    module[1].weight = module[0].weight
    return module


def readers(*classes: int) -> list[TensorReader]:
    return [TensorReader(network(count).state_dict(), source=f"model {i}") for i, count in enumerate(classes)]


@pytest.mark.parametrize("method", ["average", "task_arithmetic", "ties", "pcb"])
def test_what_is_merged_carries_the_first_models_head(method: str) -> None:
    models, base = readers(3, 5), readers(2)[0]
    one, two, start = with_one_head([*models, base], ["head"])
    options = {} if method == "average" else {"base": start}
    merged = dict(ml.merge([one, two], method=method, copy_only=patterns_of(["head"]), **options))
    assert torch.equal(merged["head.weight"], models[0]["head.weight"])
    bodies = [TensorReader({k: v for k, v in reader.items() if "head" not in k}) for reader in (*models, base)]
    options = {} if method == "average" else {"base": bodies[2]}
    without = dict(ml.merge(bodies[:2], method=method, **options))
    assert all(torch.equal(merged[name], tensor) for name, tensor in without.items()), "the head takes no part"


def test_a_base_without_a_head_fits_too_and_equal_objects_stay_equal() -> None:
    model = readers(3)[0]
    base = TensorReader({name: tensor for name, tensor in model.items() if not name.startswith("head")})
    one, two, three = with_one_head([model, base, base], ["head"])
    assert two is three
    assert one.names() == two.names() == model.names()
    assert two.shape("head.weight") == (3, 6)
    with pytest.raises(InputError, match="model 0: no tensor belongs to the head 'haed'; did you mean 'head'"):
        with_one_head([model], ["haed"])


def test_a_head_in_the_unit_order_of_the_merged_model_computes_the_same() -> None:
    module, inputs = network().eval(), torch.randn(5, 4)
    expected = module(inputs)
    symmetry = ml.derive_symmetry(module, (inputs,))
    moved = AlignedReader(TensorReader(module.state_dict()), symmetry.random_alignment(seed=3), 0)
    assert not torch.equal(moved["head.weight"], module.state_dict()["head.weight"])
    body = network().eval()
    body.load_state_dict(
        {**network().state_dict(), "body.weight": moved["body.weight"], "body.bias": moved["body.bias"]}
    )
    body.load_state_dict(head_tensors(moved, "head"), strict=False)
    torch.testing.assert_close(body(inputs), expected)


def test_a_module_takes_the_shape_of_a_checkpoints_head_or_zeros() -> None:
    five, name = readers(5)[0], f"{HERE}:network"
    with pytest.raises(InputError, match=r"'head.weight' has shape \[5, 6\]"):
        load_model(name, {}, five)
    module = load_model(name, {}, five, heads=["head"])
    assert module(torch.zeros(1, 4)).shape == (1, 5)
    assert torch.equal(module.state_dict()["head.weight"], five["head.weight"])
    headless = TensorReader({name: tensor for name, tensor in five.items() if not name.startswith("head")})
    assert torch.equal(load_model(name, {}, headless, heads=["head"])(torch.zeros(2, 4)), torch.zeros(2, 3))


def test_a_tied_parameter_may_be_missing_if_the_other_is_there() -> None:
    weight = torch.arange(9.0).view(3, 3)
    module = load_model(f"{HERE}:tied_network", {}, TensorReader({"0.weight": weight}))
    assert torch.equal(module[1].weight, weight)
    with pytest.raises(InputError, match=r"tensor '0.weight' of .* is missing"):
        load_model(f"{HERE}:tied_network", {}, TensorReader({"2.weight": weight}))
