"""Selection gives the entry that a full sort would put there, however the rows are cut."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from mergeline.balancing.order_statistics import order_statistics

FEW_VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-38, 3.0])
ENTRIES = st.one_of(FEW_VALUES, st.floats(-1e6, 1e6, width=32))


def pieces(rows: Tensor, cut: int) -> list[Tensor]:
    return [part for part in rows.tensor_split([cut], dim=1) if part.shape[1]]


@given(rows=st.lists(ENTRIES, min_size=1, max_size=40), cut=st.integers(0, 40))
@example(rows=[0.0, 0.0, 0.0], cut=1)
def test_every_rank_is_the_one_of_a_full_sort(rows: list[float], cut: int) -> None:
    row = np.array(rows, dtype=np.float32)
    both = torch.from_numpy(np.stack([row, -row[::-1]]))
    expected = np.sort(both.numpy(), axis=1)

    found = order_statistics(lambda: pieces(both, cut), len(row), range(len(row)))

    assert np.array_equal(found.numpy(), expected)
    assert not (np.signbit(found.numpy()) & (found.numpy() == 0)).any()  # one zero: bytes depend on no tie


def test_chunks_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="3 entries per row, not 4"):
        order_statistics(lambda: [torch.ones(2, 3)], 4, [0])


def test_the_input_is_left_alone() -> None:
    row = torch.tensor([[3.0, 1.0, 2.0]])
    order_statistics(lambda: [row], 3, [1])
    assert row.tolist() == [[3.0, 1.0, 2.0]]
