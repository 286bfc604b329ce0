"""Degenerate and wrong input: a sentence, or nothing merged for that task and a warning; never NaN."""

import json
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mergeline.balancing.competition import VARIANTS
from mergeline.balancing.pcb import merged_task_vector, pcb_merge
from mergeline.balancing.statistics import PcbStatistics, pcb_statistics
from mergeline.errors import InputError

AUTHORS = sorted(set(VARIANTS) - {"paper"})
every_variant = pytest.mark.parametrize("variant", sorted(VARIANTS))


def random_tau(n: int = 3, d: int = 200) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


@every_variant
def test_an_all_zero_task_vector_is_left_out_with_a_warning(variant: str) -> None:
    tau = random_tau()
    tau[1] = 0
    with pytest.warns(UserWarning, match="task vector 1 is left out"):
        result = pcb_merge(tau, 0.1, variant=variant)
    assert not result.coefficients[1].any()
    assert result.coefficients[[0, 2]].any(dim=1).all()
    assert result.merged.isfinite().all()
    assert result.merged.any()


@pytest.mark.parametrize("variant", ["reference", "nlp"])
def test_task_vectors_that_cancel_give_the_base_and_warnings(variant: str) -> None:
    tau = random_tau(1)
    with pytest.warns(UserWarning) as caught:
        result = pcb_merge(torch.cat([tau, -tau]), 0.1, variant=variant)
    assert [str(warning.message)[:18] for warning in caught] == ["PCB: task vector 0", "PCB: task vector 1"]
    assert not result.merged.any()
    assert not result.coefficients.any()


@every_variant
def test_a_task_vector_of_one_magnitude_is_left_out(variant: str) -> None:
    """Its clip bounds meet, so nothing tells its entries apart."""
    tau = random_tau()
    tau[2] = 0.5 * tau[2].sign()
    with pytest.warns(UserWarning, match="task vector 2 is left out"):
        result = pcb_merge(tau, 0.1, variant=variant)
    assert not result.coefficients[2].any()
    assert result.merged.isfinite().all()


@pytest.mark.parametrize("variant", AUTHORS)
def test_scores_that_tie_at_the_threshold_are_left_out(variant: str) -> None:
    tau = torch.tensor([[1.0] * 190 + [0.0] * 10, [2.0] * 190 + [0.0] * 10])
    with pytest.warns(UserWarning) as caught:
        result = pcb_merge(tau, 0.5, variant=variant)
    assert len(caught) == 2
    assert not result.merged.any()


def test_ordinary_task_vectors_cause_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pcb_merge(random_tau(), 0.1)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.0000001, 5, math.nan, math.inf])
def test_a_keep_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(InputError, match=r"keep_ratio .* is not in \(0, 1\]"):
        pcb_merge(random_tau(), ratio)


@pytest.mark.parametrize(("size", "ratio"), [(10, 0.05), (10, 0.1), (1, 1.0), (200, 1e-20)])
def test_a_keep_ratio_that_keeps_nothing_is_refused(size: int, ratio: float) -> None:
    with pytest.raises(InputError, match=f"keeps none of {size} parameters"):
        pcb_merge(random_tau(2, size), ratio)


def test_the_least_that_a_keep_ratio_can_keep_is_one() -> None:
    assert (pcb_merge(random_tau(2, 11), 0.1).coefficients > 0).sum(dim=1).tolist() == [1, 1]


@pytest.mark.parametrize("ratio", [-0.1, 0.5, math.nan])
def test_a_clip_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(InputError, match="clip_ratio"):
        pcb_merge(random_tau(), 0.1, clip_ratio=ratio)


def test_a_clip_ratio_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"clip_ratio 0.49 leaves nothing of 3 parameters"):
        pcb_merge(random_tau(2, 3), 1.0, clip_ratio=0.49)


@pytest.mark.parametrize("variant", ["refrence", ""])
def test_an_unknown_variant_is_refused(variant: str) -> None:
    with pytest.raises(InputError, match=r"PCB variant .* does not exist.*(reference|known)"):
        pcb_merge(random_tau(), 0.1, variant=variant)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nan_and_infinity_are_refused_by_row(value: float, dtype: torch.dtype) -> None:
    tau = random_tau().to(dtype)
    tau[2, 7] = value
    with pytest.raises(InputError, match=r"task_vectors\[2\] holds NaN or infinity"):
        pcb_merge(tau, 0.1)


def test_values_that_overflow_float32_are_refused() -> None:
    tau = random_tau()
    tau[:, :3] = 3e38
    tau[0, :3] = 0
    with pytest.raises(InputError, match="too large for float32"):
        pcb_merge(tau, 0.1)


@every_variant
def test_float64_beyond_float32_is_refused(variant: str) -> None:
    for factor in (3e38, 1e300):
        with pytest.raises(InputError, match="too large for float32"):
            pcb_merge(factor * random_tau().double(), 0.1, variant=variant)


def test_task_vectors_must_be_a_tensor() -> None:
    with pytest.raises(InputError, match="task_vectors is a list, not a tensor"):
        pcb_merge([[1.0, 2.0]], 0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize("tau", [torch.ones(5), torch.ones(2, 3, 4), torch.ones(2, 5).int(), torch.ones(0, 5)])
def test_other_shapes_and_dtypes_are_refused(tau: Tensor) -> None:
    with pytest.raises(InputError, match=r"floating tensor \[tasks, parameters\]"):
        pcb_merge(tau, 0.5)


@pytest.mark.parametrize("scales", [[1.0, 2.0], [[1.0, 1.0, 1.0]], math.nan, [1.0, 1.0, math.inf]])
def test_scales_must_be_one_number_or_one_per_task(scales) -> None:
    with pytest.raises(InputError, match="one finite number or 3 of them"):
        pcb_merge(random_tau(), 0.1, scales=scales)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.sampled_from([0.0, 1.0, -1.0, 1e-30, -1e-45, 1e15, 0.3]), min_size=6, max_size=6),
        min_size=1,
        max_size=4,
    ),
    ratio=st.sampled_from([0.2, 0.5, 1.0]),
    variant=st.sampled_from(sorted(VARIANTS)),
)
def test_nothing_finite_comes_out_as_nan(rows: list[list[float]], ratio: float, variant: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = pcb_merge(torch.tensor(rows), ratio, variant=variant)
    assert result.merged.isfinite().all()
    assert ((result.coefficients >= 0) & (result.coefficients <= 1)).all()


@every_variant
def test_statistics_survive_json_to_the_bit(variant: str) -> None:
    tau = random_tau()
    statistics = pcb_statistics(lambda: [tau], 200, 0.1, variant=variant)
    text = json.dumps(statistics.to_dict())
    assert PcbStatistics.from_dict(json.loads(text)) == statistics
    assert len(text) < 2000
    assert statistics.variant == variant
    assert statistics.clip_ratio == VARIANTS[variant].clip_ratio
    assert statistics.column("clip_low", tau).tolist() == list(statistics.clip_low)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"threshold": [0.5]}, "threshold is not one finite number per task"),
        ({"maximum": [1.0, math.nan]}, "maximum is not one finite number per task"),
        ({"clip_high": ["1", "2"]}, "clip_high is not one finite number per task"),
        ({"size": 3}, "hold the fields"),
        ({"clip_low": []}, "clip_low is not one finite number per task"),
    ],
)
def test_damaged_statistics_are_refused(change: dict[str, object], complaint: str) -> None:
    good = PcbStatistics("reference", 0.1, 0.0, (0.0, 0.0), (1.0, 1.0), (0.5, 0.5), (2.0, 2.0))
    assert PcbStatistics.from_dict(good.to_dict()) == good
    with pytest.raises(InputError, match=complaint):
        PcbStatistics.from_dict({**good.to_dict(), **change})
    with pytest.raises(InputError, match="hold the fields"):
        PcbStatistics.from_dict({key: value for key, value in good.to_dict().items() if key != "maximum"})


def test_damaged_normalisers_are_refused() -> None:
    good = pcb_statistics(lambda: [random_tau()], 200, 0.1, variant="paper").to_dict()
    for change in ({"log_intra": [0.5]}, {"product_low": [math.nan] * 6}, {"log_inter": []}):
        with pytest.raises(InputError, match=f"{next(iter(change))} is not one finite number per pair"):
            PcbStatistics.from_dict({**good, "normalisers": {**good["normalisers"], **change}})
    for missing in ({}, {"log_intra": [1.0, 1.0, 1.0]}):
        with pytest.raises(InputError, match="normalisers hold the fields"):
            PcbStatistics.from_dict({**good, "normalisers": missing})
    with pytest.raises(InputError, match="hold the fields"):
        PcbStatistics.from_dict({**good, "variant": "reference"})


def test_statistics_of_another_number_of_models_are_refused() -> None:
    tau = random_tau(3)
    statistics = pcb_statistics(lambda: [tau], 200, 0.1)
    with pytest.raises(InputError, match="of 3 task models, not 2"):
        merged_task_vector(tau[:2], statistics)
    with pytest.raises(InputError, match="2 scales for 3 task models"):
        merged_task_vector(tau, statistics, [1.0, 1.0])
