"""WUDI, TSV-Merge and Iso-C against their equations, written out densely in float64, and the laws that they obey."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mergeline.merging.engine import merge

METHODS = ["wudi", "wudi_closed", "tsv", "iso_c"]
every_method = pytest.mark.parametrize("method", METHODS)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(task_vectors: Tensor, method: str, **options: Any) -> Tensor:
    """The merged task vector: the base is 0."""
    models = [{"w": vector.clone()} for vector in task_vectors]
    return dict(merge(models, base={"w": torch.zeros_like(task_vectors[0])}, method=method, **options))["w"]


def disturbance(tau: Tensor, task_vectors: Tensor) -> Tensor:
    """The loss of WUDI-Merging."""
    return sum(((tau - own) @ own.T).square().sum() / own.square().sum() for own in task_vectors)  # type: ignore[return-value]


@pytest.mark.parametrize("shape", [(3, 8, 5), (2, 5, 8), (3, 6, 6)])
def test_iso_c_makes_all_directions_of_the_sum_equally_strong(shape: tuple[int, ...]) -> None:
    vectors = randn(*shape)
    left, values, right = torch.linalg.svd(vectors.double().sum(dim=0), full_matrices=False)
    expected = 1.3 * values.mean() * left @ right
    assert torch.allclose(run(vectors, "iso_c", scale=1.3).double(), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 12, 9), (2, 7, 10), (4, 8, 8)])
def test_tsv_keeps_a_share_of_each_task_and_makes_the_directions_of_all_orthogonal(shape: tuple[int, ...]) -> None:
    vectors = randn(*shape).double()
    share = min(shape[1:]) // shape[0]
    lefts, values, rights = [], [], []
    for vector in vectors:
        left, value, right = torch.linalg.svd(vector, full_matrices=False)
        lefts, values, rights = (
            [*lefts, left[:, :share]],
            [*values, value[:share]],
            [*rights, right[:share].T],
        )
    procrustes = []
    for columns in (torch.cat(lefts, dim=1), torch.cat(rights, dim=1)):
        outer, _, inner = torch.linalg.svd(columns, full_matrices=False)
        procrustes.append(outer @ inner)
    expected = procrustes[0] @ torch.diag(torch.cat(values)) @ procrustes[1].T
    assert torch.allclose(run(vectors.float(), "tsv").double(), expected, atol=2e-5)


@pytest.mark.parametrize("shape", [(3, 8, 5), (2, 5, 8)])
def test_wudi_takes_steps_of_adam_down_its_loss(shape: tuple[int, ...]) -> None:
    vectors = 0.1 * randn(*shape)
    tau = vectors.sum(dim=0).requires_grad_()
    adam = torch.optim.Adam([tau], lr=1e-3)
    for _ in range(60):
        adam.zero_grad()
        disturbance(tau, vectors).backward()  # type: ignore[no-untyped-call]
        adam.step()
    found = run(vectors, "wudi", steps=60, learning_rate=1e-3)
    assert torch.allclose(found, tau.detach(), atol=1e-5)
    assert disturbance(found, vectors) < 0.8 * disturbance(vectors.sum(dim=0), vectors)
    assert torch.allclose(run(vectors, "wudi", steps=0), vectors.sum(dim=0), atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 8, 5), (2, 5, 8), (2, 2, 8)])
def test_wudi_in_closed_form_is_regmean_with_the_task_vectors_as_inputs_and_the_least_loss(
    shape: tuple[int, ...],
) -> None:
    vectors = 1e-3 * randn(*shape)
    found = run(vectors, "wudi_closed", ridge=1e-12)
    exact = vectors.double()
    grams = torch.stack([own.T @ own / own.square().sum() for own in exact])
    expected = (exact @ grams).sum(dim=0) @ torch.linalg.pinv(grams.sum(dim=0), rtol=1e-10)
    assert torch.allclose(found.double(), expected, atol=1e-3 * float(expected.abs().max()))
    least = disturbance(found.double(), exact)
    for seed in range(5):
        nearby = found.double() + 1e-5 * randn(*shape[1:], seed=seed).double()
        assert disturbance(nearby, exact) > least
    assert disturbance(run(vectors, "wudi_closed", ridge=1.0).double(), exact) > least


def test_wudi_with_enough_steps_arrives_at_the_closed_form() -> None:
    vectors = randn(3, 8, 5)
    steps = run(vectors, "wudi", steps=3000, learning_rate=3e-3)
    assert torch.allclose(steps, run(vectors, "wudi_closed", ridge=1e-10), atol=2e-3)


def test_a_large_ridge_leaves_the_sum() -> None:
    vectors = randn(3, 8, 5)
    assert torch.allclose(run(vectors, "wudi_closed", ridge=1e9), vectors.sum(dim=0), atol=1e-5)


@pytest.mark.parametrize(("method", "options"), [("wudi", {}), ("wudi_closed", {}), ("tsv", {})])
def test_one_model_is_itself(method: str, options: dict[str, Any]) -> None:
    vectors = randn(1, 7, 9)
    assert torch.allclose(run(vectors, method, **options), vectors[0], atol=1e-5)


@pytest.mark.parametrize("n", [2, 3])
def test_copies_of_a_model(n: int) -> None:
    """WUDI gives the task vector back, TSV-Merge its strongest directions, Iso-C n times what it makes of one."""
    one = randn(6, 9)
    copies = torch.stack([one] * n)
    assert torch.allclose(run(copies, "wudi_closed", ridge=1e-10), one, atol=1e-5)
    left, values, right = torch.linalg.svd(one, full_matrices=False)
    share = 6 // n
    strongest = left[:, :share] * values[:share] @ right[:share]
    assert torch.allclose(run(copies, "tsv"), strongest, atol=1e-5)
    assert torch.allclose(run(copies, "iso_c"), n * run(one[None], "iso_c"), atol=1e-5)


@every_method
def test_another_order_of_the_models_changes_only_the_rounding(method: str) -> None:
    vectors = randn(4, 9, 12)
    assert torch.allclose(run(vectors[[2, 0, 3, 1]], method), run(vectors, method), atol=2e-5)


@pytest.mark.parametrize("factor", [2.0**-10, 2.0**10])
@pytest.mark.parametrize("method", ["wudi_closed", "tsv", "iso_c"])
def test_task_vectors_of_another_size_give_a_result_of_that_size(method: str, factor: float) -> None:
    vectors = randn(3, 9, 12)
    assert torch.allclose(run(factor * vectors, method) / factor, run(vectors, method), atol=1e-4)


@pytest.mark.parametrize("method", ["wudi_closed", "tsv", "iso_c"])
def test_nothing_moves_along_directions_that_no_task_vector_has(method: str) -> None:
    """Of rank one, as adapters are: what an SVD gives beside the directions that there are is arbitrary."""
    columns, rows = torch.linalg.qr(randn(10, 10)).Q, torch.linalg.qr(randn(8, 8, seed=1)).Q
    vectors = torch.stack([torch.outer(columns[:, i], rows[i]) * (i + 1) for i in range(3)])
    merged = run(vectors, method)
    spanned = columns[:, :3].T @ merged @ rows[:3].T
    size = [2.0, 2.0, 2.0] if method == "iso_c" else [1.0, 2.0, 3.0]
    assert torch.allclose(spanned, torch.diag(torch.tensor(size)), atol=1e-3)
    assert torch.allclose(columns[:, :3] @ spanned @ rows[:3], merged, atol=1e-5)


@every_method
def test_a_task_that_moved_nothing_takes_no_part_in_the_directions(method: str) -> None:
    vectors = torch.cat([randn(2, 6, 9), torch.zeros(1, 6, 9)])
    merged = run(vectors, method)
    assert merged.isfinite().all()
    if method != "tsv":  # its share is 1/3 of the rank then, not 1/2
        assert torch.allclose(merged, run(vectors[:2], method), atol=1e-5)


@every_method
def test_convolutions_are_matrices_of_their_patches_and_vectors_are_averaged(method: str) -> None:
    kernels = randn(3, 6, 4, 3, 3)
    flat = run(kernels.reshape(3, 6, 36), method, scale=0.5)
    assert torch.equal(run(kernels, method, scale=0.5), flat.view(6, 4, 3, 3))
    vectors = randn(3, 6)
    assert torch.allclose(run(vectors, method, scale=0.5), 0.5 * vectors.mean(dim=0), atol=1e-7)
    assert torch.allclose(run(kernels, method, matrix=False), kernels.mean(dim=0), atol=1e-7)
    by_pattern = run(kernels, method, options_by_pattern={"w": {"matrix": False}})
    assert torch.equal(by_pattern, run(kernels, method, matrix=False))
