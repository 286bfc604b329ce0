"""Fisher merging and RegMean against their equations, and RegMean against the least squares it stands for."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mergeline.errors import InputError
from mergeline.evidence.gram import gram_matrices
from mergeline.merging.engine import merge


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(models: Tensor, evidence: Tensor | None, method: str, **options: Any) -> Tensor:
    known = [{"w": one} for one in evidence] if evidence is not None else [{} for _ in models]
    return dict(merge([{"w": model.clone()} for model in models], evidence=known, method=method, **options))["w"]


@pytest.mark.parametrize("chunk", [1, 17, 1 << 18])
@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 3.0]])
def test_fisher_weighs_every_entry_by_its_fisher(weights: list[float] | None, chunk: int) -> None:
    models, fishers = randn(3, 4, 25), randn(3, 4, 25, seed=1).square()
    share = fishers.double() * torch.tensor(weights or [1.0] * 3, dtype=torch.float64).view(3, 1, 1)
    expected = (share * models.double()).sum(dim=0) / share.sum(dim=0)
    assert torch.allclose(run(models, fishers, "fisher", weights=weights, chunk=chunk), expected.float(), atol=1e-6)


def test_entries_that_no_model_depends_on_are_averaged() -> None:
    models, fishers = randn(3, 10), torch.zeros(3, 10)
    fishers[1, 5:] = 1e-3
    merged = run(models, fishers, "fisher")
    assert torch.allclose(merged[:5], models.mean(dim=0)[:5], atol=1e-6)
    assert torch.allclose(merged[5:], models[1, 5:], atol=1e-6)


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_one_model_and_equal_models_give_the_model(method: str) -> None:
    model = randn(6, 5)
    for count in (1, 4):
        inputs = randn(count, 20, 5, seed=1)
        evidence = randn(count, 6, 5).square() if method == "fisher" else inputs.transpose(1, 2) @ inputs
        assert torch.allclose(run(torch.stack([model] * count), evidence, method), model, atol=1e-6)


def grams(models: int, rows: int, size: int) -> Tensor:
    inputs = randn(models, rows, size, seed=3) * torch.logspace(-2, 2, size)
    return inputs.transpose(1, 2) @ inputs / rows


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(7, 6), (7, 2, 3, 1)])
def test_regmean_is_its_equation(alpha: float, shape: tuple[int, ...]) -> None:
    models, matrices = randn(3, *shape), grams(3, 40, 6)
    scaled = (alpha * matrices + (1 - alpha) * torch.diag_embed(matrices.diagonal(dim1=1, dim2=2))).double()
    flat = models.reshape(3, 7, 6).double()
    expected = (flat @ scaled).sum(dim=0) @ torch.linalg.inv(scaled.sum(dim=0))
    merged = run(models, matrices, "regmean", alpha=alpha)
    assert torch.allclose(merged, expected.float().view(shape), rtol=1e-4, atol=1e-4)


def test_regmean_of_two_least_squares_solutions_is_that_of_all_data() -> None:
    data = [(randn(300, 8, seed=s), randn(300, 5, seed=s + 10)) for s in (0, 1)]
    solutions, evidence = [], []
    for inputs, targets in data:
        layer = nn.Linear(8, 5, bias=False)
        layer.weight.data = torch.linalg.lstsq(inputs, targets).solution.T.contiguous()
        solutions.append(dict(layer.state_dict()))
        evidence.append(gram_matrices(layer, inputs.split(64)))
    merged = dict(merge(solutions, evidence=evidence, method="regmean", alpha=1.0))["weight"]
    joint = torch.linalg.lstsq(*(torch.cat(parts) for parts in zip(*data, strict=True))).solution.T
    assert torch.allclose(merged, joint, atol=1e-5)
    assert (merged - (solutions[0]["weight"] + solutions[1]["weight"]) / 2).abs().max() > 1e-3


def test_regmean_averages_tensors_without_a_gram_matrix_and_inputs_without_data() -> None:
    models = randn(2, 4, 6)
    assert torch.allclose(run(models, None, "regmean"), models.mean(dim=0), atol=1e-7)
    matrices = grams(2, 40, 6)
    matrices[:, 2] = matrices[:, :, 2] = 0
    merged = run(models, matrices, "regmean")
    assert torch.allclose(merged[:, 2], models.mean(dim=0)[:, 2], atol=1e-6)
    live = [0, 1, 3, 4, 5]
    assert torch.allclose(merged[:, live], run(models[:, :, live], matrices[:, live][:, :, live], "regmean"), atol=1e-6)
    assert torch.allclose(run(models, torch.zeros(2, 6, 6), "regmean"), models.mean(dim=0), atol=1e-7)


@pytest.mark.parametrize("rows", [1, 3])
def test_regmean_of_fewer_rows_than_inputs_keeps_all_outputs_and_moves_no_further_than_that_takes(rows: int) -> None:
    inputs, models = randn(2, rows, 40, seed=5), randn(2, 30, 40)
    matrices = inputs.transpose(1, 2) @ inputs / rows
    merged = run(models, matrices, "regmean", alpha=1.0)
    for model, own in zip(models, inputs, strict=True):
        assert torch.allclose(own @ merged.T, own @ model.T, atol=0.01)
    size = matrices.sum(dim=0).diagonal().sqrt()  # inputs count in units of their size
    moved = (merged - models.mean(dim=0)) * size
    basis = torch.linalg.qr((inputs.reshape(-1, 40) / size).T).Q
    assert torch.allclose(moved @ basis @ basis.T, moved, atol=0.05)


def test_gram_matrices_of_another_width_are_told_by_name() -> None:
    with pytest.raises(InputError, match="regmean: the Gram matrices of 'w' are 5 x 5, not 6 x 6"):
        run(randn(2, 4, 6), grams(2, 10, 5), "regmean")
    with pytest.raises(InputError, match="fisher: weights must be 2 numbers >= 0"):
        run(randn(2, 4), torch.ones(2, 4), "fisher", weights=[1.0])
