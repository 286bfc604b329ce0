"""The loss of hand-made cases."""

from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergeline.errors import InputError
from mergeline.evaluation.losses import example_losses, mean_loss

LABELS = torch.tensor([0, 1, 2, 1])


def test_who_knows_nothing_has_the_logarithm_of_the_number_of_classes() -> None:
    assert mean_loss(torch.zeros(4, 3), LABELS) == pytest.approx(log(3))
    assert mean_loss(torch.zeros(4, 3), LABELS, [1, 2]) == pytest.approx(log(2))


def test_examples_and_logits_of_other_classes_do_not_count() -> None:
    logits = torch.tensor([[9.0, 0.0, 1.0], [0.0, 1.0, 0.0], [50.0, 0.0, 2.0], [7.0, 0.0, 3.0]])
    losses = example_losses(logits, LABELS, [2, 1])
    expected = torch.tensor([log(1 + torch.e**gap) for gap in (-1.0, -2.0, 3.0)])
    torch.testing.assert_close(losses, expected)
    assert mean_loss(logits, LABELS, [1, 2]) == mean_loss(logits, LABELS, [2, 1]) == pytest.approx(expected.mean())


@given(st.integers(0, 10**6), st.floats(-50, 50))
def test_a_constant_added_to_the_logits_changes_nothing(seed: int, shift: float) -> None:
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(8) % 5
    assert mean_loss(logits + shift, labels) == pytest.approx(mean_loss(logits, labels), abs=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_one_sentence(value: float) -> None:
    logits = torch.zeros(4, 3)
    logits[2, 1] = value
    with pytest.raises(InputError, match="the loss is not finite for 1 of 4 examples"):
        mean_loss(logits, LABELS)
    assert mean_loss(logits[[0, 1, 3]], LABELS[[0, 1, 3]]) == pytest.approx(log(3))


def test_half_precision_is_no_reason_to_overflow() -> None:
    logits = torch.tensor([[60000.0, -60000.0]], dtype=torch.float16)
    assert mean_loss(logits, torch.tensor([1])) == pytest.approx(120000, rel=1e-3)


@pytest.mark.parametrize(
    ("classes", "message"), [([], "different numbers"), ([3], "from 0 to 2"), ([0, 2], "no example of them")]
)
def test_classes_that_make_no_task_are_refused(classes: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        mean_loss(torch.zeros(2, 3), torch.ones(2, dtype=torch.long), classes)
