"""Scores of hand-made cases."""

from dataclasses import astuple
from math import sqrt

import pytest
import torch
from torch import nn

from mergeline.errors import InputError
from mergeline.evaluation.metrics import Score, accuracy, ensemble_probabilities, mean_score, predict_logits

SCORES = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
LABELS = torch.tensor([0, 1, 2, 1])


def test_accuracy_counts_right_answers() -> None:
    assert accuracy(SCORES, LABELS) == Score(0.5, 0.25, 4)


def test_accuracy_among_some_classes_ignores_the_others_columns_and_pictures() -> None:
    # without class 0 the second picture is right, and the first is not asked
    assert astuple(accuracy(SCORES, LABELS, [1, 2])) == pytest.approx((2 / 3, sqrt(2 / 27), 3))
    assert accuracy(SCORES, LABELS, [2, 1]) == accuracy(SCORES, LABELS, [1, 2])


def test_ties_go_to_the_class_named_first() -> None:
    assert accuracy(torch.zeros(2, 3), torch.tensor([0, 0]), [0, 2]).value == 1.0
    assert accuracy(torch.zeros(2, 3), torch.tensor([0, 0]), [2, 0]).value == 0.0


@pytest.mark.parametrize(
    ("classes", "message"),
    [([], "different numbers"), ([1, 1], "different numbers"), ([3], "from 0 to 2"), ([-1], "from 0 to 2")],
)
def test_classes_that_make_no_task_are_refused(classes: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        accuracy(SCORES, LABELS, classes)


def test_a_task_without_pictures_is_refused() -> None:
    with pytest.raises(InputError, match="no picture"):
        accuracy(SCORES, torch.ones(4, dtype=torch.long), [0, 2])


def test_the_mean_of_scores_weighs_tasks_equally() -> None:
    mean = mean_score([Score(0.5, 0.03, 100), Score(1.0, 0.04, 900)])
    assert astuple(mean) == pytest.approx((0.75, 0.025, 1000))


def test_the_ensemble_averages_probabilities_not_logits() -> None:
    sure, unsure = torch.tensor([[20.0, 0.0]]), torch.tensor([[-30.0, 0.0]])
    expected = torch.tensor([[0.5, 0.5]])
    torch.testing.assert_close(ensemble_probabilities([sure, unsure]), expected)


def test_batches_do_not_change_the_outputs_and_training_mode_is_refused() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    images = torch.randn(5, 1, 2, 2)
    outputs = predict_logits(module, images, batch_size=2)
    assert outputs.shape == (5, 3) and not outputs.requires_grad
    torch.testing.assert_close(outputs, module(images).detach())
    with pytest.raises(InputError, match="training mode"):
        predict_logits(module.train(), images)
