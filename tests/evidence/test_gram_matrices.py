"""Gram matrices are X^T X over the rows that a layer multiplies its weight with."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mergeline.errors import InputError
from mergeline.evidence import gram
from mergeline.evidence.gram import gram_matrices


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_of_a_linear_layer_it_is_that_of_its_inputs() -> None:
    module = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    inputs = randn(50, 4, 5)  # every position of a sequence is a row
    found = gram_matrices(module, [inputs])
    hidden = module[1](module[0](inputs)).reshape(-1, 7)
    assert list(found) == ["0.weight", "2.weight"]
    assert torch.allclose(found["0.weight"], inputs.reshape(-1, 5).T @ inputs.reshape(-1, 5) / 200, atol=1e-5)
    assert torch.allclose(found["2.weight"], hidden.T @ hidden / 200, atol=1e-5)
    assert all(torch.equal(matrix, matrix.T) and matrix.dtype == torch.float32 for matrix in found.values())


CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 2, "padding": "same", "dilation": 2},
    {"kernel_size": 3, "padding": 2, "padding_mode": "circular"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
]


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_of_a_convolution_it_is_that_of_its_patches(options: dict) -> None:
    """The patches X are known by what they do: outputs are X W^T, so G gives the mean square of any output."""
    conv = nn.Conv2d(3, 64, bias=False, **options)
    inputs = randn(6, 3, 9, 8)
    matrix = gram_matrices(conv, [inputs])["weight"]
    flat = conv.weight.detach().reshape(64, -1)
    outputs = conv(inputs).transpose(0, 1).reshape(64, -1).detach()
    expected = outputs @ outputs.T / outputs.shape[1]
    assert torch.allclose(flat @ matrix @ flat.T, expected, atol=1e-5)


def test_how_batches_are_cut_and_layers_split_their_rows_matters_only_in_rounding(monkeypatch) -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(2), nn.Linear(36, 6))
    inputs = randn(20, 2, 8, 8)
    whole = gram_matrices(module, [inputs])
    monkeypatch.setattr(gram, "ENTRIES", 100)
    parts = gram_matrices(module, [(part, None) for part in inputs.split(7)])
    for name, matrix in whole.items():
        assert torch.allclose(parts[name], matrix, rtol=1e-4, atol=1e-5), name


def test_long_streams_lose_no_precision() -> None:
    inputs = randn(2000, 4) + 1000
    found = gram_matrices(nn.Linear(4, 1), inputs.split(10))["weight"]
    exact = inputs.double().T @ inputs.double() / 2000
    assert torch.allclose(found.double(), exact, rtol=3e-7)


class Shared(nn.Module):
    """A layer used twice, one whose weight is tied to an embedding, and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.twice = nn.Linear(6, 6)
        self.again = self.twice
        self.idle = nn.Linear(6, 6)
        self.grouped = nn.Conv2d(6, 6, 1, groups=2)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.again(input=self.twice(self.embed(tokens)))
        return self.head(self.grouped(x[:, :, None, None])[:, :, 0, 0])


def test_tied_weights_have_one_matrix_over_all_their_uses_and_layers_that_do_not_run_none() -> None:
    torch.manual_seed(0)
    module = Shared()
    tokens = torch.arange(11)
    found = gram_matrices(module, [{"tokens": tokens}])
    assert list(found) == ["again.weight", "embed.weight", "head.weight", "twice.weight"]
    first = module.embed.weight.detach()
    rows = torch.cat([first, module.twice(first).detach()])
    assert torch.allclose(found["twice.weight"], rows.T @ rows / 22, atol=1e-6)
    assert torch.equal(found["twice.weight"], found["again.weight"])
    assert torch.equal(found["embed.weight"], found["head.weight"])


def test_the_module_is_left_as_it_was_even_after_an_error() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2)).train()
    module[2].eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    first, second = gram_matrices(module, [randn(9, 3)]), gram_matrices(module, [randn(9, 3)])
    assert all(torch.equal(first[name], second[name]) for name in first)  # no dropout
    with pytest.raises(InputError, match=r"cannot take inputs of shape \[9, 4\]"):
        gram_matrices(module, [randn(9, 4)])
    assert [layer.training for layer in module.modules()] == [True, True, True, False, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert not any(layer._forward_pre_hooks for layer in module.modules())


def test_no_batches_and_infinite_inputs_are_refused() -> None:
    with pytest.raises(InputError, match="there are no batches"):
        gram_matrices(nn.Linear(2, 2), [])
    with pytest.raises(InputError, match="that of 'weight' is not finite"):
        gram_matrices(nn.Linear(2, 2), [torch.full((1, 2), torch.inf)])


def test_patches_are_in_the_order_of_the_flattened_weight() -> None:
    conv, inputs = nn.Conv2d(2, 1, 2, bias=False), randn(1, 2, 2, 2)
    patch = functional.unfold(inputs, 2)[0, :, 0]
    assert torch.allclose(conv(inputs).flatten(), conv.weight.flatten() @ patch)
    assert torch.allclose(gram_matrices(conv, [inputs])["weight"], torch.outer(patch, patch), atol=1e-6)


def test_positions_that_do_not_count_are_left_out() -> None:
    module = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    inputs, counts = randn(6, 4, 5), randn(6, 4, seed=1) > 0
    found = gram_matrices(module, [inputs], attended=lambda batch: counts)
    assert torch.allclose(found["0.weight"], inputs[counts].T @ inputs[counts] / counts.sum(), atol=1e-5)
    assert torch.allclose(found["1.weight"], gram_matrices(module, [inputs[counts]])["1.weight"], atol=1e-5)
    pooled = nn.Sequential(nn.Flatten(), nn.Linear(20, 3))  # no positions any more: read whole
    whole = gram_matrices(pooled, [inputs], attended=lambda batch: counts)
    assert torch.equal(whole["1.weight"], gram_matrices(pooled, [inputs])["1.weight"])
