"""Scores of hand-made cases."""

import sys
import warnings
from dataclasses import astuple
from math import sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score
from torch import nn

from mergeline.errors import InputError
from mergeline.evaluation.metrics import (
    accuracy,
    check_labels,
    ensemble_probabilities,
    predict_logits,
    score_by,
)
from mergeline.evaluation.score import Score, mean_score

SCORES = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
LABELS = torch.tensor([0, 1, 2, 1])


def test_accuracy_counts_right_answers() -> None:
    assert accuracy(SCORES, LABELS) == Score(0.5, 0.25, 4)


def test_accuracy_among_some_classes_ignores_the_others_columns_and_pictures() -> None:
    # without class 0 the second picture is right, and the first is not asked
    assert astuple(accuracy(SCORES, LABELS, [1, 2]))[:3] == pytest.approx((2 / 3, sqrt(2 / 27), 3))
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
    with pytest.raises(InputError, match="no example"):
        accuracy(SCORES, torch.ones(4, dtype=torch.long), [0, 2])


def test_the_mean_of_scores_weighs_tasks_equally() -> None:
    mean = mean_score([Score(0.5, 0.03, 100), Score(1.0, 0.04, 900)])
    assert astuple(mean)[:3] == pytest.approx((0.75, 0.025, 1000))


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


def test_inputs_that_the_model_cannot_take_are_named_with_the_shape_of_a_batch() -> None:
    with pytest.raises(InputError, match=r"^the model cannot take inputs of shape \[4, 5\] .*cannot be multiplied"):
        predict_logits(nn.Linear(3, 2).eval(), torch.zeros(9, 5), batch_size=4)


def test_who_watches_many_batches_sees_how_far_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    inputs = torch.zeros(40, 3)
    predict_logits(nn.Linear(3, 2).eval(), inputs, batch_size=4)
    assert capsys.readouterr().err == "", "a few take no time"
    predict_logits(nn.Linear(3, 2).eval(), inputs, batch_size=1)
    assert "/40" in capsys.readouterr().err


def test_outputs_that_are_not_finite_are_counted() -> None:
    module = nn.Linear(2, 2).eval()
    images = torch.tensor([[0.0, 1.0], [float("inf"), 0.0], [float("nan"), 0.0]])
    with pytest.raises(InputError, match="not finite for 2 of 3 examples"):
        predict_logits(module, images)


@pytest.mark.parametrize(("labels", "wrong"), [([0, 3], 3), ([-1, 2], -1)])
def test_a_label_outside_the_classes_is_named(labels: list[int], wrong: int) -> None:
    with pytest.raises(InputError, match=f"the label {wrong} is outside the range.*the file has 3, 0 to 2"):
        check_labels(torch.tensor(labels), 3, "the file has")
    check_labels(torch.tensor([0, 2]), 3, "the file has")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_balanced_accuracy_and_f1_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    true, predicted = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    scores, labels = torch.eye(4)[torch.tensor(predicted)], torch.tensor(true)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are predicted and never true
        balanced, f1 = balanced_accuracy_score(true, predicted), f1_score(true, predicted, average="macro")
    assert score_by("balanced_accuracy", scores, labels).value == pytest.approx(balanced)
    assert score_by("f1", scores, labels).value == pytest.approx(f1)
    assert score_by("accuracy", scores, labels) == accuracy(scores, labels)


def test_the_bootstrap_gives_the_error_of_a_share_and_the_same_one_each_time() -> None:
    torch.manual_seed(0)
    labels = torch.arange(400) % 2  # as many of each class: balanced accuracy is accuracy
    scores = torch.eye(2)[torch.where(torch.rand(400) < 0.8, labels, 1 - labels)]
    score = score_by("balanced_accuracy", scores, labels)
    assert score.value == pytest.approx(accuracy(scores, labels).value)
    assert score.standard_error == pytest.approx(accuracy(scores, labels).standard_error, rel=0.1)
    assert score == score_by("balanced_accuracy", scores, labels)
    assert score.count == 400


def test_a_metric_is_among_the_classes_of_its_task() -> None:
    assert score_by("f1", SCORES, LABELS, [1, 2]).value == pytest.approx(2 / 3)
    assert score_by("balanced_accuracy", SCORES, LABELS, [1, 2]).value == pytest.approx(0.75)


def test_texts_are_predicted_in_their_own_order_and_padding_is_cut() -> None:
    seen: list[tuple[int, ...]] = []

    class FirstAndCount(nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(tokens.shape))
            return torch.stack([tokens[:, 0, 0], tokens[:, 1].sum(dim=1)], dim=1)

    lengths = torch.tensor([4, 1, 3, 1, 2])
    mask = (torch.arange(6) < lengths[:, None]).long()
    inputs = torch.stack([torch.arange(5)[:, None] * mask, mask], dim=1)
    outputs = predict_logits(FirstAndCount().eval(), inputs, batch_size=2)
    assert outputs.tolist() == [[i, length] for i, length in enumerate(lengths.tolist())]
    assert seen == [(2, 2, 1), (2, 2, 3), (1, 2, 4)]
