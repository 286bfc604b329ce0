"""The diagonal Fisher is the mean of squared per-example gradients, however it is asked for."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mergeline.errors import InputError
from mergeline.evidence.fisher import fisher_diagonal

CLASSES = 3


class Small(nn.Module):
    """All that matters: convolution, BatchNorm, dropout, a tied weight, an unused one, a frozen one, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, CLASSES)
        self.unused = nn.Parameter(torch.ones(2))
        self.register_buffer("scale", torch.tensor(2.0))
        self.head.bias.requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.drop(self.norm(self.conv(pictures)).relu()).mean(dim=(2, 3))
        return self.head(self.second(self.first(x).tanh()).tanh()) * self.scale


@pytest.fixture
def module() -> Small:
    torch.manual_seed(0)
    module = Small()
    module(torch.randn(20, 1, 6, 6))  # running statistics that are not 0 and 1
    return module.train()


def data(count: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 1, 6, 6, generator=generator), torch.arange(count) % CLASSES


def explicit(module: Small, inputs: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Sum over classes of weights [n, classes] times squared gradients, with plain backward passes."""
    module.eval().requires_grad_()
    sums = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    for picture, row in zip(inputs, weights, strict=True):
        for label, weight in enumerate(row):
            module.zero_grad()
            module(picture[None]).log_softmax(1)[0, label].backward()
            for name, parameter in module.named_parameters():
                if parameter.grad is not None:
                    sums[name] += weight * parameter.grad**2
    return {name: total / len(inputs) for name, total in sums.items()}


def test_of_given_labels_it_is_the_mean_of_squared_gradients(module: Small) -> None:
    inputs, labels = data()
    found = fisher_diagonal(module, [(inputs, labels)])
    expected = explicit(module, inputs, torch.eye(CLASSES)[labels])
    assert set(found) == {name for name, t in module.state_dict().items() if t.is_floating_point()}
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=1e-4, atol=1e-9), name
    assert torch.equal(found["second.weight"], found["first.weight"])
    for name in ("unused", "scale", "norm.running_mean"):
        assert not found[name].any(), name
    assert found["head.bias"].any()  # frozen, but its Fisher is asked for


def test_the_expected_one_weighs_every_class_by_its_probability(module: Small) -> None:
    inputs, labels = data()
    found = fisher_diagonal(module, [(inputs, labels)], labels="expected")
    with torch.no_grad():
        weights = module.eval()(inputs).softmax(1)
    for name, tensor in explicit(module, inputs, weights).items():
        assert torch.allclose(found[name], tensor, rtol=1e-4, atol=1e-9), name


def test_sampled_labels_give_the_expected_one_on_average_and_the_same_bits_again(module: Small) -> None:
    inputs, labels = data(4)
    many = inputs.repeat(200, 1, 1, 1), labels.repeat(200)
    sampled = fisher_diagonal(module, [many], labels="sampled")
    expected = fisher_diagonal(module, [(inputs, labels)], labels="expected")
    assert torch.allclose(sampled["head.weight"], expected["head.weight"], rtol=0.3)
    again = fisher_diagonal(module, [many], labels="sampled")
    other = fisher_diagonal(module, [many], labels="sampled", seed=1)
    assert all(torch.equal(again[name], sampled[name]) for name in sampled)
    assert not torch.equal(other["head.weight"], sampled["head.weight"])


@pytest.mark.parametrize("labels", ["given", "sampled", "expected"])
def test_batches_change_no_bit_and_the_module_is_left_as_it_was(module: Small, labels: Any) -> None:
    inputs, classes = data()
    module.drop.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = [layer.training for layer in module.modules()]
    whole = fisher_diagonal(module, [(inputs, classes)], labels=labels)
    parts = fisher_diagonal(module, zip(inputs.split(3), classes.split(3), strict=True), labels=labels)
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    assert [layer.training for layer in module.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not module.head.bias.requires_grad


def test_named_inputs_and_outputs_that_are_not_logits(module: Small) -> None:
    inputs, labels = data()
    prototypes = torch.randn(5, CLASSES, generator=torch.Generator().manual_seed(2))
    found = fisher_diagonal(module, [({"pictures": inputs}, labels)], logits=lambda outputs: outputs @ prototypes.T)
    wider = nn.Sequential(module, nn.Linear(CLASSES, 5, bias=False))
    with torch.no_grad():
        wider[1].weight.copy_(prototypes)
    for name, tensor in fisher_diagonal(wider, [(inputs, labels)]).items():
        if name.startswith("0."):
            assert torch.allclose(found[name.removeprefix("0.")], tensor, rtol=1e-5), name


def test_wrong_input_is_one_sentence(module: Small) -> None:
    inputs, labels = data()
    with pytest.raises(InputError, match="there are no examples"):
        fisher_diagonal(module, [])
    with pytest.raises(InputError, match="label 3 of example 0 is none of 3 classes"):
        fisher_diagonal(module, [(inputs, labels + 3)])
    with pytest.raises(InputError, match="labels must be 'given', 'sampled' or 'expected', not 'true'"):
        fisher_diagonal(module, [(inputs, labels)], labels="true")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not finite"):
        fisher_diagonal(module, [(inputs * float("nan"), labels)])
