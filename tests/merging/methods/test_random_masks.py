"""Random numbers of entries: uniform, independent, and the same bits however a tensor is cut."""

import numpy as np
import pytest
import torch

from mergeline.merging.random_masks import drop_and_rescale, random_words, uniforms
from mergeline.merging.registry import Piece

COUNT = 1 << 16


def test_any_piece_of_a_tensor_is_drawn_directly() -> None:
    whole = random_words(3, "layer.weight", 1, 0, 5000)
    for start in (0, 1, 7, 8, 9, 1234):
        for count in (0, 1, 7, 8, 9, 100, 3001):
            assert np.array_equal(random_words(3, "layer.weight", 1, start, count), whole[start : start + count])


def test_entries_beyond_four_billion_are_drawn_too() -> None:
    far = random_words(0, "w", 0, (1 << 40) + 3, 10)
    assert np.array_equal(far[5:], random_words(0, "w", 0, (1 << 40) + 8, 5))


def test_the_bits_are_pinned() -> None:
    """Whoever changes them changes every mask that was ever published."""
    assert random_words(0, "w", 0, 0, 4).tolist() == [762292052, 214156903, 3290934261, 4190366513]


def test_words_are_uniform_bit_by_bit_and_over_the_range() -> None:
    words = random_words(0, "w", 0, 0, COUNT)
    for bit in range(32):
        ones = int(((words >> bit) & 1).sum())
        assert abs(ones - COUNT / 2) < 5 * (COUNT / 4) ** 0.5, bit
    counts = np.bincount(words >> 24, minlength=256)
    chi_square = ((counts - COUNT / 256) ** 2 / (COUNT / 256)).sum()
    assert abs(chi_square - 255) < 5 * (2 * 255) ** 0.5


OTHERS = {"seed": (1, "w", 0, 0), "name": (0, "v", 0, 0), "model": (0, "w", 1, 0)}
OTHERS |= {f"lag {lag}": (0, "w", 0, lag) for lag in (1, 2, 3, 4, 7, 8, 16, 64, 4096)}


@pytest.mark.parametrize("other", OTHERS)
def test_numbers_of_other_seeds_names_models_and_neighbours_are_independent(other: str) -> None:
    seed, name, model, start = OTHERS[other]
    left = uniforms(0, "w", 0, 0, COUNT).astype("f8") - 0.5
    right = uniforms(seed, name, model, start, COUNT).astype("f8") - 0.5
    correlation = float(left @ right / np.sqrt((left @ left) * (right @ right)))
    assert abs(correlation) < 5 / COUNT**0.5
    agreeing = int(((left < 0) == (right < 0)).sum())
    assert abs(agreeing - COUNT / 2) < 5 * (COUNT / 4) ** 0.5


def test_uniforms_lie_below_one() -> None:
    values = uniforms(0, "w", 0, 0, COUNT)
    assert values.dtype == np.float32
    assert 0 <= values.min() < 1e-3
    assert 1 - 1e-3 < values.max() < 1


@pytest.mark.parametrize("keep_ratio", [1e-3, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_the_share_of_kept_entries_and_the_expectation_are_right(keep_ratio: float) -> None:
    rows = drop_and_rescale(torch.ones(2, COUNT), keep_ratio, 0, Piece("w", 0, (COUNT,)))
    assert set(rows.unique().tolist()) <= {0.0, float(torch.tensor(1.0) / keep_ratio)}
    for row in rows:
        assert abs(int(row.count_nonzero()) - COUNT * keep_ratio) <= 5 * (COUNT * keep_ratio * (1 - keep_ratio)) ** 0.5
