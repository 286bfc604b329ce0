"""The variant `paper` against the paper's equations, written down densely in float64."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mergeline.balancing.pcb import PcbResult, pcb_merge
from mergeline.balancing.softmax import exact_sum, normalisers
from mergeline.balancing.statistics import pcb_statistics

Array = NDArray[np.float64]


def norm(row: Array) -> Array:
    return (row - row.min()) / (row.max() - row.min())


def softmax(row: Array) -> Array:
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def plain_scores(tau: Array) -> Array:
    """b [n, d]: equations (1) and (2)."""
    n = len(tau)
    intra = [softmax(n * norm(row * row)) for row in tau]
    inter = [sum(softmax(norm(row * other)) for other in tau) for row in tau]
    return np.array(intra) * np.array(inter)


def assert_agrees(tau: NDArray[np.float32], r: float) -> PcbResult:
    exact = tau.astype(np.float64)
    b = plain_scores(exact)
    q = np.sort(b, axis=1)[:, int(tau.shape[1] * (1 - r)), None]
    s = np.where(b >= q, b, 0)
    result = pcb_merge(torch.from_numpy(tau), r, variant="paper")
    clear = (abs(b / q - 1) > 1e-5).all(axis=0)  # of the rest, float32 may keep one and drop the other
    assert clear.mean() > 0.9
    assert np.abs(result.coefficients.numpy() - s / b.max())[:, clear].max() <= 2e-5
    merged = (s * exact).sum(axis=0) / np.maximum(s.sum(axis=0), 1e-300)
    assert np.abs(result.merged.numpy() - merged)[clear].max() <= 2e-5 * np.abs(merged).max()
    return result


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 6),
    d=st.integers(300, 2000),
    r=st.sampled_from([0.05, 0.2, 0.5, 1.0]),
    magnitude=st.sampled_from([1e-25, 1e-3, 1.0, 1e25]),
)
def test_merge_agrees_with_the_plain_equations(seed: int, n: int, d: int, r: float, magnitude: float) -> None:
    generator = np.random.default_rng(seed)
    values = generator.standard_t(4, size=(n, d)) * generator.uniform(0.1, 1, size=(n, 1))
    assert_agrees((magnitude * values).astype(np.float32), r)


def test_sixty_models_stay_within_float32() -> None:
    tau = np.random.default_rng(3).standard_normal((60, 400)).astype(np.float32)
    b = plain_scores(tau.astype(np.float64))
    q = np.sort(b, axis=1)[:, 320, None]
    found = pcb_merge(torch.from_numpy(tau), 0.2, variant="paper").coefficients.numpy()
    clear = abs(b / q - 1) > 1e-4
    assert np.abs(found - np.where(b >= q, b, 0) / b.max())[clear].max() <= 1e-4


def test_hundreds_of_models_give_finite_numbers() -> None:
    tau = torch.randn(300, 20, generator=torch.Generator().manual_seed(0))
    result = pcb_merge(tau, 0.5, variant="paper")
    assert result.merged.isfinite().all()
    assert result.merged.any()


def test_a_single_entry_may_be_kept() -> None:
    tau = np.random.default_rng(4).standard_normal((2, 300)).astype(np.float32)
    assert ((assert_agrees(tau, 1e-9).coefficients) > 0).sum(dim=1).tolist() == [1, 1]


def test_the_weights_of_tasks_differ_by_their_normalisers() -> None:
    """A task with a few outliers has small softmaxes elsewhere and a large one there."""
    tau = np.random.default_rng(5).uniform(0.5, 1.0, (2, 1000)).astype(np.float32)
    tau[1, :3] = 20.0
    best = assert_agrees(tau, 1.0).coefficients.amax(dim=1)
    assert best[1] == 1
    assert best[0] < 0.9


def test_statistics_of_a_few_columns_at_a_time_are_those_of_the_whole() -> None:
    tau = torch.randn(3, 5000, generator=torch.Generator().manual_seed(1))
    whole = pcb_statistics(lambda: [tau], 5000, 0.1, variant="paper")
    assert whole == pcb_statistics(lambda: tau.split(7, dim=1), 5000, 0.1, variant="paper")
    low, high = list(whole.clip_low), list(whole.clip_high)
    known = normalisers(lambda: [tau], 5000, low, high)
    assert known == whole.normalisers
    for order in (range(4999, -1, -1), random.Random(0).sample(range(5000), 5000)):
        assert normalisers(lambda order=order: [tau[:, list(order)]], 5000, low, high) == known


@given(st.lists(st.floats(0, 1, width=32), max_size=50))
def test_a_sum_is_exact_to_its_unit(values: list[float]) -> None:
    total = exact_sum(torch.tensor(values))
    assert total == exact_sum(torch.tensor(values[::-1]))
    assert abs(total / 2**70 - math.fsum(values)) <= len(values) * 2**-71 + 1e-15 * math.fsum(values)


def test_the_longest_sum_is_exact() -> None:
    for value in (1.0, 2**-36, 1 - 2**-24, 2**-60):
        assert exact_sum(torch.full((1 << 18,), value)) == int(value * 2**70) << 18


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_a_task_without_a_competition_is_left_out(value: float) -> None:
    tau = torch.randn(3, 500, generator=torch.Generator().manual_seed(2))
    tau[1] = value
    with pytest.warns(UserWarning, match="task vector 1 is left out"):
        result = pcb_merge(tau, 0.2, variant="paper")
    assert not result.coefficients[1].any()
    assert result.coefficients[[0, 2]].any(dim=1).all()
