"""What holds for PCB-Merging whatever the task vectors are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mergeline.balancing.competition import VARIANTS
from mergeline.balancing.pcb import (
    coefficients,
    merged_task_vector,
    pcb_merge,
    weighted_directions,
    weighted_mean,
)
from mergeline.balancing.statistics import PcbStatistics, pcb_statistics

every_variant = pytest.mark.parametrize("variant", sorted(VARIANTS))


def random_tau(n: int, d: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, d, generator=generator) * torch.rand(n, 1, generator=generator)
    return values * (torch.rand(n, d, generator=generator) > 0.05)  # some exact zeros


def clipped(tau: Tensor, bounds: Tensor) -> Tensor:
    return tau.sign() * tau.abs().clamp(bounds[:, :1], bounds[:, 1:])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 5),
    cuts=st.lists(st.integers(1, 399), max_size=4),
    variant=st.sampled_from(sorted(VARIANTS)),
)
def test_cutting_into_chunks_changes_no_bit(seed: int, n: int, cuts: list[int], variant: str) -> None:
    tau = random_tau(n, 400, seed)
    parts = [part for part in tau.tensor_split(sorted(cuts), dim=1) if part.shape[1]]

    statistics = pcb_statistics(lambda: parts, 400, 0.2, variant=variant)

    assert statistics == pcb_statistics(lambda: [tau], 400, 0.2, variant=variant)
    whole = pcb_merge(tau, 0.2, variant=variant)
    assert torch.equal(torch.cat([merged_task_vector(part, statistics) for part in parts]), whole.merged)
    assert torch.equal(torch.cat([coefficients(part, statistics) for part in parts], dim=1), whole.coefficients)


@every_variant
def test_the_internal_chunks_change_no_bit(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tau = random_tau(3, 1000)
    whole = pcb_merge(tau, 0.1, variant=variant)
    monkeypatch.setattr("mergeline.balancing.pcb.CHUNK", 7)
    chunked = pcb_merge(tau, 0.1, variant=variant)
    assert torch.equal(chunked.merged, whole.merged)
    assert torch.equal(chunked.coefficients, whole.coefficients)


@every_variant
def test_the_number_of_threads_changes_no_bit(variant: str) -> None:
    tau = random_tau(2, 100_003)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(pcb_merge(tau, 0.1, variant=variant))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(other.merged, results[0].merged)
        assert torch.equal(other.coefficients, results[0].coefficients)


@every_variant
def test_the_order_of_models_changes_no_bit(variant: str) -> None:
    """Sums over models run in float64, where those of float32 values this close in magnitude are exact."""
    tau, order = random_tau(5, 2000), torch.tensor([3, 0, 4, 1, 2])
    straight, shuffled = pcb_merge(tau, 0.1, variant=variant), pcb_merge(tau[order], 0.1, variant=variant)
    assert torch.equal(shuffled.merged, straight.merged)
    assert torch.equal(shuffled.coefficients, straight.coefficients[order])


@every_variant
@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.9, 1.0])
def test_the_share_that_survives_is_the_keep_ratio(variant: str, ratio: float) -> None:
    tau = random_tau(3, 997)
    tau[tau == 0] = 1e-3  # no ties
    kept = (pcb_merge(tau, ratio, variant=variant, clip_ratio=0.0).coefficients > 0).sum(dim=1)
    least = 997 - int(997 * (1 - ratio)) - 1
    if variant == "paper":  # keeps the threshold itself and, where float32 cannot tell scores apart, its ties
        assert ((kept > least) & (kept < least + 5)).all()
    else:
        assert kept.tolist() == [least] * 3


def test_the_threshold_rank_is_a_truncated_float_product() -> None:
    tau = torch.arange(1.0, 11.0)[None]
    result = pcb_merge(tau, 0.9, clip_ratio=0.0)  # 10 * (1 - 0.9) is 0.9999999999999998
    assert (result.coefficients > 0).sum() == 9


@every_variant
def test_the_best_score_of_every_task_gets_coefficient_one(variant: str) -> None:
    best = pcb_merge(random_tau(4, 500), 0.1, variant=variant).coefficients.amax(dim=1)
    assert best.max() == 1
    assert variant == "paper" or best.tolist() == [1.0] * 4  # the paper's scores are compared across tasks


@every_variant
def test_one_survivor_keeps_its_clipped_value_to_the_bit(variant: str) -> None:
    tau = random_tau(4, 2000)
    result = pcb_merge(tau, 0.1, variant=variant)
    alone = (result.coefficients > 0).sum(dim=0) == 1
    assert alone.any()
    values = (clipped(tau, result.clip_bounds) * (result.coefficients > 0)).sum(dim=0)
    assert torch.equal(result.merged[alone], values[alone])
    assert not result.merged[(result.coefficients == 0).all(dim=0)].any()


@every_variant
@pytest.mark.parametrize("n", [1, 2, 5])
def test_equal_task_vectors_merge_to_what_they_keep(variant: str, n: int) -> None:
    """True for any n, one model included: PCB drops the weak part even of a single task vector."""
    one = random_tau(1, 600)
    result = pcb_merge(one.repeat(n, 1), 0.2, variant=variant)
    kept = result.coefficients[0] > 0
    assert torch.equal(result.merged, torch.where(kept, clipped(one, result.clip_bounds[:1])[0], 0.0))


@every_variant
def test_negated_task_vectors_merge_to_the_negative(variant: str) -> None:
    tau = random_tau(3, 500)
    there, back = pcb_merge(tau, 0.1, variant=variant), pcb_merge(-tau, 0.1, variant=variant)
    assert torch.equal(back.merged, -there.merged)
    assert torch.equal(back.coefficients, there.coefficients)


@every_variant
def test_only_pairwise_and_paper_ignore_the_scale_of_task_vectors(variant: str) -> None:
    tau = random_tau(3, 500)
    large, small = pcb_merge(tau, 0.1, variant=variant), pcb_merge(tau / 1024, 0.1, variant=variant)
    assert torch.equal(large.coefficients, small.coefficients) == (variant in ("pairwise", "paper"))


@every_variant
def test_one_scale_multiplies_the_merged_vector(variant: str) -> None:
    tau = random_tau(3, 500)
    plain, scaled = pcb_merge(tau, 0.1, variant=variant), pcb_merge(tau, 0.1, variant=variant, scales=1.3)
    assert torch.equal(scaled.merged, 1.3 * plain.merged)
    assert not pcb_merge(tau, 0.1, variant=variant, scales=0.0).merged.any()


@every_variant
def test_scales_per_task_act_inside_the_weighted_mean(variant: str) -> None:
    tau, scales = random_tau(3, 500), torch.tensor([0.5, 1.0, 2.0])
    plain = pcb_merge(tau, 0.3, variant=variant)
    weights = scales[:, None] * plain.coefficients / plain.coefficients.sum(dim=0).clamp(min=1e-12)
    expected = (weights * clipped(tau, plain.clip_bounds)).sum(dim=0)
    merged = pcb_merge(tau, 0.3, variant=variant, scales=scales).merged
    assert torch.allclose(merged, expected, rtol=1e-5, atol=1e-6)


@every_variant
def test_any_scales_are_one_sum_over_the_directions(variant: str) -> None:
    tau, scales = random_tau(3, 2000), [0.8, 1.0, 1.3]
    statistics = pcb_statistics(lambda: [tau], 2000, 0.3, variant=variant)
    directions = weighted_directions(tau, statistics).double()
    terms = torch.tensor(scales, dtype=torch.float64)[:, None] * directions
    error = (terms.sum(dim=0) - merged_task_vector(tau, statistics, scales).double()).abs()
    assert (error <= 2**-23 * terms.abs().sum(dim=0)).all()
    alone = (directions != 0).sum(dim=0) == 1
    assert alone.any()
    assert torch.equal(directions.sum(dim=0)[alone].float(), merged_task_vector(tau, statistics)[alone])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_computed_in_float32(dtype: torch.dtype) -> None:
    tau = random_tau(3, 500).to(dtype)
    result, upcast = pcb_merge(tau, 0.1), pcb_merge(tau.float(), 0.1)
    assert result.merged.dtype == result.coefficients.dtype == torch.float32
    assert torch.equal(result.merged, upcast.merged)


def test_the_layout_in_memory_does_not_matter() -> None:
    tau = random_tau(3, 500)
    transposed = tau.T.contiguous().T
    assert torch.equal(pcb_merge(transposed, 0.1).merged, pcb_merge(tau, 0.1).merged)


def test_a_tiny_sum_of_coefficients_is_floored() -> None:
    statistics = PcbStatistics("reference", 0.1, 0.0, (0.0,), (4.0,), (0.0,), (1.0,))
    merged = weighted_mean(torch.tensor([[3.0, 3.0]]), torch.tensor([[1e-13, 1e-11]]), statistics)
    assert merged.tolist() == pytest.approx([0.3, 3.0])


def test_entries_are_clipped_between_the_bounds_but_zero_stays_zero() -> None:
    statistics = PcbStatistics("reference", 0.1, 0.0, (0.5,), (2.0,), (0.0,), (1.0,))
    tau = torch.tensor([[0.0, 0.1, -0.1, 1.0, 3.0, -3.0]])
    assert weighted_mean(tau, torch.ones_like(tau), statistics).tolist() == [0.0, 0.5, -0.5, 1.0, 2.0, -2.0]


def test_the_input_is_left_alone() -> None:
    tau = random_tau(3, 500)
    copy = tau.clone()
    pcb_merge(tau, 0.1)
    assert torch.equal(tau, copy)
