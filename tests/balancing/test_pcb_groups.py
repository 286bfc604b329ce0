"""Groups of a larger model (a layer, a tensor): never refused for being small, quiet about what a task left alone."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mergeline.balancing.competition import VARIANTS
from mergeline.balancing.pcb import coefficients, merged_task_vector
from mergeline.balancing.statistics import PcbStatistics, pcb_statistics

every_variant = pytest.mark.parametrize("variant", sorted(VARIANTS))


def of_group(tau: Tensor, keep_ratio: float, variant: str) -> PcbStatistics:
    found = pcb_statistics(lambda: [tau], tau.shape[1], keep_ratio, variant=variant, whole=False)
    assert PcbStatistics.from_dict(found.to_dict()) == found
    return found


@every_variant
def test_a_group_of_one_entry_becomes_the_mean(variant: str) -> None:
    tau = torch.tensor([[2.0], [-1.0], [5.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        statistics = of_group(tau, 0.1, variant)
    assert merged_task_vector(tau, statistics).tolist() == [2.0]


@every_variant
def test_zeros_do_not_water_down_the_mean(variant: str) -> None:
    tau = torch.tensor([[2.0], [0.0], [5.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert merged_task_vector(tau, of_group(tau, 0.1, variant)).tolist() == [3.5]
        assert merged_task_vector(0 * tau, of_group(0 * tau, 0.1, variant)).tolist() == [0.0]


@every_variant
@pytest.mark.parametrize("size", [2, 5, 9])
def test_a_small_group_keeps_the_strongest_entry_of_each_task(variant: str, size: int) -> None:
    tau = torch.arange(1.0, size + 1).repeat(2, 1)
    tau[1] = tau[1].flip(0)
    statistics = of_group(tau, 0.05, variant)
    assert (coefficients(tau, statistics) > 0).nonzero()[:, 0].tolist() == [0, 1]
    merged = merged_task_vector(tau, statistics)
    assert (merged != 0).sum() == len({int(row.argmax()) for row in coefficients(tau, statistics)})
    assert set(merged[merged != 0].tolist()) <= set(tau.flatten().tolist())  # nothing is clipped


@every_variant
def test_a_group_that_is_large_enough_is_treated_like_a_model(variant: str) -> None:
    tau = torch.randn(3, 400, generator=torch.Generator().manual_seed(0))
    assert of_group(tau, 0.1, variant) == pcb_statistics(lambda: [tau], 400, 0.1, variant=variant)


@every_variant
def test_only_a_task_that_is_not_zero_is_missed(variant: str) -> None:
    tau = torch.randn(3, 400, generator=torch.Generator().manual_seed(0))
    tau[1] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert of_group(tau, 0.1, variant).left_out() == [1]
    tau[1] = 0.5
    with pytest.warns(UserWarning, match="task vector 1 is left out of the merge of 400 parameters"):
        assert of_group(tau, 0.1, variant).left_out() == [1]


@settings(max_examples=80, deadline=None)
@given(
    columns=st.lists(st.lists(st.sampled_from([0.0, 1.0, -1.0, 1e-30, 0.3]), min_size=3, max_size=3), min_size=1),
    ratio=st.sampled_from([1e-20, 0.05, 0.5, 1.0]),
    clip_ratio=st.sampled_from([None, 0.0, 0.2, 0.49]),
    variant=st.sampled_from(sorted(VARIANTS)),
)
def test_no_group_is_refused(columns: list[list[float]], ratio: float, clip_ratio: float | None, variant: str) -> None:
    tau = torch.tensor(columns).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        statistics = pcb_statistics(
            lambda: [tau], tau.shape[1], ratio, variant=variant, clip_ratio=clip_ratio, whole=False
        )
    merged = merged_task_vector(tau, statistics)
    assert (merged >= tau.amin(dim=0).clamp(max=0)).all()
    assert (merged.abs() <= tau.abs().max()).all()
