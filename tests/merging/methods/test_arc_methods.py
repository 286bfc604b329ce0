"""SLERP, its mean of many models and model stock: geometry of whole tensors, from their inner products."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mergeline.errors import InputError
from mergeline.merging.engine import merge
from mergeline.merging.inner_products import inner_products


def vectors(count: int, size: int = 500, seed: int = 0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def run(rows: Tensor, method: str, base: Tensor | None = None, **options: Any) -> Tensor:
    origin = {"base": {"w": base}} if base is not None else {}
    return dict(merge([{"w": row.clone()} for row in rows], method=method, **origin, **options))["w"]


@pytest.mark.parametrize("size", [1, 5, 16383, 16384, 16385, 50000])
def test_inner_products_are_those_of_float64_and_no_bit_depends_on_the_chunks(size: int) -> None:
    rows = vectors(3, size) + 0.1
    expected = rows.double() @ rows.double().T
    whole = inner_products(lambda: [rows])
    assert np.allclose(whole, expected.numpy(), rtol=1e-12)
    for step in (999, 16384, 20000):
        assert inner_products(lambda step=step: rows.split(step, dim=1)) == whole
    parts = [1, 16383, 1, 7, 32768]  # cuts before, at and after the blocks
    assert inner_products(lambda: rows.split([*parts, size - sum(parts)], dim=1) if size > 49160 else [rows]) == whole
    squares = inner_products(lambda: [rows], pairs=False)
    assert [squares[i][i] for i in range(3)] == [whole[i][i] for i in range(3)]


def test_inner_products_may_be_taken_of_one_buffer_that_is_used_again() -> None:
    rows, buffer = vectors(2, 40000), torch.empty(2, 30000)

    def chunks() -> Any:
        for part in rows.split(30000, dim=1):
            yield buffer[:, : part.shape[1]].copy_(part)
            buffer.fill_(math.nan)

    assert inner_products(chunks) == inner_products(lambda: [rows])


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_slerp_is_shoemakes_formula(t: float) -> None:
    left, right = vectors(2).double()
    angle = torch.acos(left @ right / (left.norm() * right.norm()))
    expected = (torch.sin((1 - t) * angle) * left + torch.sin(t * angle) * right) / torch.sin(angle)
    assert torch.allclose(run(vectors(2), "slerp", t=t), expected.float(), atol=1e-6)


def test_slerp_keeps_the_norm_that_the_chord_loses() -> None:
    rows = vectors(2, 10000)
    rows /= rows.norm(dim=1, keepdim=True)
    assert float(run(rows, "slerp").norm()) == pytest.approx(1, abs=1e-5)
    assert float(run(rows, "average").norm()) == pytest.approx(0.5**0.5, abs=0.02)


def test_slerp_of_nearly_parallel_opposite_and_zero_vectors_is_the_chord() -> None:
    row = vectors(1)[0]
    for other in (row, row * 1.5, row + 0.01 * vectors(1, seed=1)[0], -row, torch.zeros_like(row)):
        expected = 0.75 * row + 0.25 * other
        assert torch.allclose(run(torch.stack([row, other]), "slerp", t=0.25), expected, atol=1e-6)


def test_slerp_takes_tensors_one_by_one_unless_granularity_says_otherwise() -> None:
    first, second = ({"a": vectors(1, seed=s)[0], "b": vectors(1, seed=s + 10)[0]} for s in (0, 1))
    merged = dict(merge([first, second], method="slerp"))
    assert torch.equal(merged["a"], run(torch.stack([first["a"], second["a"]]), "slerp"))
    joined = run(torch.stack([torch.cat([m["a"], m["b"]]) for m in (first, second)]), "slerp")
    assert torch.equal(
        torch.cat(list(dict(merge([first, second], method="slerp", granularity="model")).values())), joined
    )


def test_slerp_merges_two_models() -> None:
    for count in (1, 3):
        with pytest.raises(InputError, match="'slerp' merges 2 task models"):
            run(vectors(count), "slerp")


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("weights", [None, [1.0, 3.0]])
def test_multi_slerp_of_two_unit_vectors_is_slerp(weights: list[float] | None) -> None:
    rows = unit(vectors(2))
    t = 0.5 if weights is None else 0.75
    assert torch.allclose(run(rows, "multi_slerp", weights=weights), run(rows, "slerp", t=t), atol=1e-6)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 2.0, 5.0]])
def test_multi_slerp_minimises_the_squared_arcs_and_has_the_mean_norm(weights: list[float]) -> None:
    rows = vectors(4, 6) + 0.5
    share = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    merged = run(rows, "multi_slerp", weights=weights).double()
    assert float(merged.norm()) == pytest.approx(float(share @ rows.double().norm(dim=1)), rel=1e-5)

    def cost(point: Tensor) -> float:
        return float((share * torch.acos((unit(rows.double()) @ unit(point)).clamp(-1, 1)) ** 2).sum())

    for step in torch.randn(50, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64):
        assert cost(merged) <= cost(unit(merged) + 1e-2 * step)


def test_multi_slerp_of_one_of_equal_of_parallel_of_opposite_and_of_zero_models() -> None:
    row = vectors(1)[0]
    assert torch.equal(run(row[None], "multi_slerp"), row)
    assert torch.equal(run(torch.stack([row] * 3), "multi_slerp"), row)
    assert torch.allclose(run(torch.stack([row, 3 * row]), "multi_slerp"), 2 * row)
    assert not run(torch.stack([row, -row]), "multi_slerp").any()
    assert not run(torch.zeros(3, 10), "multi_slerp").any()
    assert torch.allclose(run(torch.stack([row, torch.zeros_like(row)]), "multi_slerp"), row / 2)
    assert torch.allclose(run(torch.stack([row, -row]), "multi_slerp", weights=[3.0, 1.0]), row, atol=1e-6)


def test_multi_slerp_refuses_wrong_weights() -> None:
    for weights in ([1.0], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0]):
        with pytest.raises(InputError, match="multi_slerp: weights must be 3 numbers >= 0"):
            run(vectors(3), "multi_slerp", weights=weights)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_model_stock_is_the_papers_formula(count: int) -> None:
    base, common = vectors(2, seed=9)
    models = base + common + vectors(count)
    tau = (models - base).double()
    cosines = unit(tau) @ unit(tau).T
    cosine = float((cosines.sum() - count) / (count * (count - 1)))
    t = count * cosine / (1 + (count - 1) * cosine)
    merged = run(models, "model_stock", base)
    assert torch.allclose(merged, (base + t * tau.mean(dim=0)).float(), atol=1e-5)


def test_model_stock_ends_where_the_plane_of_two_models_is_nearest_to_the_base_when_they_are_equally_long() -> None:
    """For two of one length: the foot of the perpendicular from the centre, which makes right angles there."""
    base = torch.zeros(400)
    common, left, right = vectors(3, 400).double()
    left, right = unit(common + left), unit(common + right)
    merged = run(torch.stack([left, right]).float(), "model_stock", base).double()
    cosine = float(left @ right)
    assert float(merged.norm()) == pytest.approx(2 * cosine / (1 + cosine) * ((1 + cosine) / 2) ** 0.5, rel=1e-4)


def test_model_stock_of_equal_opposite_and_zero_task_vectors() -> None:
    row = vectors(1)[0]
    zero = torch.zeros_like(row)
    assert torch.allclose(run(torch.stack([row, row]), "model_stock", zero), row, atol=1e-6)
    assert not run(torch.stack([row, -row, row]), "model_stock", zero).any()
    assert not run(torch.stack([zero, zero]), "model_stock", zero).any()
    assert not run(torch.stack([row, zero]), "model_stock", zero).any()
    with pytest.raises(InputError, match="'model_stock' merges at least 2 task models"):
        run(row[None], "model_stock", zero)
