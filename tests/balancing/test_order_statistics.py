"""The entry that a full sort would put at a rank, however the rows are cut and whatever the sample says."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from mergeline.balancing import order_statistics as module
from mergeline.balancing.order_statistics import order_statistics, sample_columns

Floats = NDArray[np.float32]
FEW_VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-38, 3.0])
DENORMALS = st.sampled_from([1e-45, -1e-45, 3e-45, -1e-39, 1e-38, 0.0, -0.0])
EXTREMES = st.sampled_from([np.inf, -np.inf, 3.4e38, -3.4e38, 0.0])
ENTRIES = st.one_of(FEW_VALUES, DENORMALS, EXTREMES, st.floats(-1e6, 1e6, width=32))
ROWS = st.one_of(*(st.lists(kind, min_size=1, max_size=60) for kind in (ENTRIES, FEW_VALUES, DENORMALS, st.just(0.3))))


def pieces(rows: Tensor, cuts: list[int]) -> list[Tensor]:
    return list(rows.tensor_split(sorted(cuts), dim=1))


def two_rows(row: list[float]) -> Tensor:
    values = np.array(row, dtype=np.float32)
    return torch.from_numpy(np.stack([values, -values[::-1]]))


def assert_sorted(found: Tensor, rows: Tensor) -> None:
    assert np.array_equal(found.numpy(), np.sort(rows.numpy(), axis=1))
    assert not (np.signbit(found.numpy()) & (found.numpy() == 0)).any()  # one zero: bytes depend on no tie


@given(row=ROWS, cuts=st.lists(st.integers(0, 60), max_size=4))
@example(row=[0.0, 0.0, 0.0], cuts=[1])
def test_every_rank_is_the_one_of_a_full_sort(row: list[float], cuts: list[int]) -> None:
    rows = two_rows(row)
    assert_sorted(order_statistics(lambda: pieces(rows, cuts), len(row), range(len(row))), rows)


@settings(deadline=None)
@given(
    row=ROWS,
    cuts=st.lists(st.integers(0, 60), max_size=4),
    sample=st.lists(st.one_of(ENTRIES, st.just(np.nan)), max_size=70),
    sigmas=st.sampled_from([0, 0.3, 4]),
    kept=st.sampled_from([0, 3, 1000]),
    bins=st.sampled_from([2, 16, 1 << 12]),
)
@example(row=[5.0] * 9 + [1.0], cuts=[], sample=[7.0] * 20, sigmas=0, kept=0, bins=2)
@example(row=[5.0] * 9 + [1.0], cuts=[], sample=[-7.0] * 20, sigmas=0, kept=0, bins=2)
@example(row=[5.0] * 9 + [1.0], cuts=[], sample=[5.0] * 20, sigmas=0, kept=0, bins=2)
def test_no_sample_and_no_bound_on_memory_changes_the_result(
    row: list[float], cuts: list[int], sample: list[float], sigmas: float, kept: int, bins: int
) -> None:
    """Adversarial samples lead the brackets astray; tiny bounds force the histogram."""
    rows = two_rows(row)
    columns = torch.tensor([sample, sample], dtype=torch.float32)
    if columns.shape[1] == len(row):
        columns = columns[:, 1:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SIGMAS", sigmas)
        patch.setattr(module, "LEAST_KEPT", kept)
        patch.setattr(module, "KEPT_ENTRIES", 0)
        patch.setattr(module, "LEAST_BINS", bins)
        patch.setattr(module, "HISTOGRAM_BINS", 0)
        found = order_statistics(lambda: pieces(rows, cuts), len(row), range(len(row)), sample=columns)
    assert_sorted(found, rows)


@pytest.mark.parametrize("shape", ["normal", "layers", "ties", "sparse", "constant", "signed"])
def test_long_rows_are_sampled(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_ENTRIES", 1000)
    monkeypatch.setattr(module, "SAMPLE_COLUMNS", 700)
    size = 50_000
    rows = torch.randn(2, size, generator=torch.Generator().manual_seed(0))
    if shape == "layers":  # one scale after the other: no prefix is like the whole
        rows *= torch.logspace(-6, 0, size)
    elif shape == "ties":
        rows = (rows * 4).round() / 4
    elif shape == "sparse":
        rows *= rows > 1.5
    elif shape == "constant":
        rows[:] = 0.125
    rows = rows if shape == "signed" else rows.abs()
    ranks = [0, 5, 500, 25_000, 45_000, 49_994, 49_999]
    expected = np.sort(rows.numpy(), axis=1)[:, ranks]
    assert np.array_equal(order_statistics(lambda: rows.split(999, dim=1), size, ranks).numpy(), expected)
    assert np.array_equal(order_statistics(lambda: [], size, ranks, sample=rows).numpy(), expected)  # held rows


def test_a_good_sample_takes_one_pass_and_its_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_ENTRIES", 1000)
    monkeypatch.setattr(module, "SAMPLE_COLUMNS", 2000)
    rows = torch.rand(2, 40_000, generator=torch.Generator().manual_seed(1))
    passes = 0

    def chunks() -> Iterator[Tensor]:
        nonlocal passes
        passes += 1
        yield from rows.split(1000, dim=1)

    sample = sample_columns(chunks, 40_000)
    assert 1900 < sample.shape[1] < 2200
    assert passes == 1
    order_statistics(chunks, 40_000, [4, 36_000, 39_999], sample=sample)
    assert passes == 2
    order_statistics(chunks, 40_000, [4, 36_000, 39_999], sample=sample + 10)  # every bracket misses
    assert passes <= 2 + 4


def test_the_columns_of_a_sample_depend_on_no_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_ENTRIES", 100)
    monkeypatch.setattr(module, "SAMPLE_COLUMNS", 50)
    rows = torch.arange(1000.0)[None]
    sample = sample_columns(lambda: rows.split(1000, dim=1), 1000)
    assert torch.equal(sample, rows[:, ::21])
    assert torch.equal(sample, sample_columns(lambda: rows.split(13, dim=1), 1000))


def test_chunks_may_share_one_buffer() -> None:
    rows = torch.randn(2, 1000, generator=torch.Generator().manual_seed(2))

    def chunks() -> Iterator[Tensor]:
        buffer = torch.empty(2, 100)
        for part in rows.split(100, dim=1):
            yield buffer.copy_(part)
            buffer.fill_(torch.nan)

    assert_sorted(order_statistics(chunks, 1000, range(1000)), rows)
    assert_sorted(order_statistics(chunks, 1000, range(1000), sample=rows[:, ::7]), rows)


def test_nan_counts_as_the_largest() -> None:
    rows = torch.tensor([[torch.nan, 2.0, torch.nan, torch.inf]])
    for sample in (rows, rows[:, :2], rows[:, :0]):
        found = order_statistics(lambda: [rows], 4, [0, 1, 2, 3], sample=sample)
        assert found[0, :2].tolist() == [2.0, torch.inf]
        assert found[0, 2:].isnan().all()


@pytest.mark.parametrize("sample", [None, torch.ones(2, 1)])
def test_chunks_that_do_not_add_up_are_refused(sample: Tensor | None) -> None:
    with pytest.raises(ValueError, match="3 entries per row, not 4"):
        order_statistics(lambda: [torch.ones(2, 3)], 4, [0], sample=sample)


def test_the_input_is_left_alone() -> None:
    row = torch.tensor([[3.0, 1.0, 2.0]])
    for sample in (None, row[:, :1]):
        order_statistics(lambda: [row], 3, [1], sample=sample)
        assert row.tolist() == [[3.0, 1.0, 2.0]]
