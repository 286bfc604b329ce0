"""RegMean++: a layer is measured on the inputs that it has in the merged model, whose earlier layers are merged."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mergeline.errors import InputError
from mergeline.evidence.gram import gram_matrices
from mergeline.evidence.merged_gram import merged_gram_matrices
from mergeline.merging.engine import merge


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3))


def states(*modules: nn.Module) -> list[dict[str, Tensor]]:
    return [{name: tensor.detach().clone() for name, tensor in module.state_dict().items()} for module in modules]


def test_layer_after_layer_it_is_regmean_on_the_inputs_from_the_merged_layers() -> None:
    models = states(network(0), network(1))
    data = [randn(40, 5, seed=10), randn(60, 5, seed=11) + 1]
    found = merged_gram_matrices(network(2), models, [own.split(16) for own in data], alpha=0.8)
    merged = dict(merge(models, method="regmean_plusplus", evidence=found, alpha=0.8))
    inputs = [own.double() for own in data]
    for layer in (0, 2, 4):
        grams = [own.T @ own / len(own) for own in inputs]
        for own, gram in zip(found, grams, strict=True):
            assert torch.allclose(own[f"{layer}.weight"].double(), gram, atol=1e-4)
        scaled = [0.8 * gram + 0.2 * torch.diag(gram.diagonal()) for gram in grams]
        pull = sum(model[f"{layer}.weight"].double() @ own for model, own in zip(models, scaled, strict=True))
        weight = torch.linalg.solve(sum(scaled), pull.T).T  # type: ignore[arg-type, union-attr]
        assert torch.allclose(merged[f"{layer}.weight"].double(), weight, atol=1e-3)
        bias = sum(model[f"{layer}.bias"].double() for model in models) / 2
        assert torch.allclose(merged[f"{layer}.bias"].double(), bias, atol=1e-6)  # type: ignore[arg-type]
        inputs = [torch.relu(own @ merged[f"{layer}.weight"].double().T + bias) for own in inputs]


def test_the_first_layer_is_that_of_regmean_and_the_later_ones_are_not() -> None:
    modules, data = [network(0), network(1)], [[randn(40, 5, seed=10)], [randn(40, 5, seed=11)]]
    later = merged_gram_matrices(network(2), states(*modules), data)
    for module, own, found in zip(modules, data, later, strict=True):
        apart = gram_matrices(module, own)
        assert torch.equal(found["0.weight"], apart["0.weight"])
        assert not torch.allclose(found["2.weight"], apart["2.weight"], rtol=0.01)


def test_models_that_are_measured_on_the_same_data_are_averaged() -> None:
    models, batch = states(network(0), network(1)), randn(40, 5)
    found = merged_gram_matrices(network(2), models, [[batch], [batch]])
    merged, mean = dict(merge(models, method="regmean_plusplus", evidence=found)), dict(merge(models, method="average"))
    for name, tensor in merged.items():
        assert torch.allclose(tensor, mean[name], atol=1e-5), name


def test_how_batches_are_cut_and_ordered_matters_only_in_rounding() -> None:
    models, data = states(network(0), network(1)), [randn(40, 5, seed=10), randn(40, 5, seed=11)]
    whole = merged_gram_matrices(network(2), models, [[own] for own in data])
    parts = merged_gram_matrices(network(2), models, [own.split(7)[::-1] for own in data])
    for first, second in zip(whole, parts, strict=True):
        for name, matrix in first.items():
            assert torch.allclose(second[name], matrix, rtol=1e-4, atol=1e-5), name


def test_the_strength_of_the_off_diagonals_may_differ_by_tensor() -> None:
    models, data = states(network(0), network(1)), [[randn(40, 5, seed=10)], [randn(40, 5, seed=11)]]
    one = merged_gram_matrices(network(2), models, data, alpha=lambda name: 0.1 if name.startswith("0") else 0.9)
    low, high = (merged_gram_matrices(network(2), models, data, alpha=alpha) for alpha in (0.1, 0.9))
    assert torch.equal(one[0]["2.weight"], low[0]["2.weight"])
    assert not torch.equal(one[0]["4.weight"], low[0]["4.weight"])
    assert not torch.equal(one[0]["2.weight"], high[0]["2.weight"])


class Branching(nn.Module):
    """BatchNorm, a layer used twice, one that only some inputs reach, and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.twice = nn.Linear(4, 4)
        self.rare = nn.Linear(4, 4)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.grouped(self.norm(self.conv(images))).mean(dim=(2, 3))
        hidden = self.twice(torch.relu(self.twice(hidden)))
        out: Tensor = self.rare(hidden) if images.mean() > 0 else hidden
        return out


def branching() -> tuple[Any, list[dict[str, Tensor]], list[list[Tensor]]]:
    torch.manual_seed(0)
    modules = [Branching(), Branching(), Branching()]
    return modules[2], states(*modules[:2]), [[randn(9, 2, 5, 5) + 1], [randn(9, 2, 5, 5, seed=1) - 1]]


def test_batch_norms_normalise_the_batch_at_hand_and_a_layer_of_two_uses_sees_both() -> None:
    module, models, data = branching()
    found = merged_gram_matrices(module, models, data)
    assert list(found[0]) == list(found[1]) == ["conv.weight", "rare.weight", "twice.weight"]
    merged = dict(merge(models, method="regmean_plusplus", evidence=found))
    mean = dict(merge(models, method="average"))
    partly = Branching().train()  # normalises each batch by itself
    partly.load_state_dict(mean | {"conv.weight": merged["conv.weight"]})
    for own, batch in zip(found, data, strict=True):
        first = partly.grouped(partly.norm(partly.conv(batch[0]))).mean(dim=(2, 3)).detach()
        rows = torch.cat([first, torch.relu(partly.twice(first)).detach()])
        assert torch.allclose(own["twice.weight"], rows.T @ rows / len(rows), atol=1e-4)


def test_a_layer_that_the_data_of_one_model_never_reach_is_that_of_the_other() -> None:
    module, models, data = branching()
    found = merged_gram_matrices(module, models, data)
    assert not found[1]["rare.weight"].any()
    merged = dict(merge(models, method="regmean_plusplus", evidence=found))
    reached = found[0]["rare.weight"]
    assert torch.allclose(merged["rare.weight"] @ reached, models[0]["rare.weight"] @ reached, atol=1e-3)


def test_the_module_is_left_as_it_was() -> None:
    module, models, data = branching()
    before = states(module)[0]
    merged_gram_matrices(module, models, data)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module.training and module.norm.training
    assert not any(layer._forward_pre_hooks for layer in module.modules())


def test_a_model_without_data_and_infinite_inputs_are_refused() -> None:
    models, batch = states(network(0), network(1)), randn(4, 5)
    for data in ([[batch]], [[batch], []]):
        with pytest.raises(InputError, match="there are no batches of some of the models"):
            merged_gram_matrices(network(2), models, data)
    with pytest.raises(InputError, match=r"that of '0\.weight' is not finite"):
        merged_gram_matrices(network(2), models, [[batch], [batch * torch.inf]])
