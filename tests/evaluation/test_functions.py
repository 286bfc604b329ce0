"""A user's function judges a model; what it gives is checked."""

import datasets
import pytest
import torch

from mergeline.errors import InputError
from mergeline.evaluation.functions import judge
from mergeline.evaluation.score import Score

HERE = __name__
ROWS = datasets.Dataset.from_dict({"number": [1.0, 2.0, 3.0, 6.0]})


def numbers(module, rows, batch_size):
    assert not torch.is_grad_enabled()
    assert batch_size == 7
    return [float(module(torch.tensor([number])).sum()) for number in rows["number"]]


def a_score(module, rows, batch_size):
    return Score(0.5, 0.1, 4)


def a_word(module, rows, batch_size):
    return "good"


def nothing_finite(module, rows, batch_size):
    return torch.tensor([1.0, float("nan"), 2.0, float("inf")])


def a_bug(module, rows, batch_size):
    return rows["nubmer"]


def a_matrix(module, rows, batch_size):
    return torch.zeros(2, 2)


def test_the_mean_of_a_number_per_example_with_its_standard_error():
    score = judge(f"{HERE}:numbers", torch.nn.Identity(), ROWS, "loss", 7)
    assert (score.value, score.count, score.measure, score.lower_is_better) == (3.0, 4, "loss", True)
    assert score.standard_error == pytest.approx((14 / 3) ** 0.5 / 2)


def test_a_score_of_its_own_is_taken_as_it_is():
    assert judge(f"{HERE}:a_score", torch.nn.Identity(), ROWS, "accuracy", 7) == Score(0.5, 0.1, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a_word", "a_word gives a str, not a Score or a number per example"),
        ("nothing_finite", "nothing_finite gives numbers that are not finite for 2 of 4 examples"),
        ("a_bug", "a_bug failed: ValueError: Column 'nubmer' doesn"),
        ("a_matrix", r"a_matrix gives numbers of shape \[2, 2\]; expected one per example"),
        ("numbres", "has no function 'numbres'; did you mean 'numbers'"),
        ("numbers", "numbers gives 3, which is no share in .*; write metric: score"),
    ],
)
def test_what_is_no_score_is_one_sentence(name, message):
    with pytest.raises(InputError, match=message):
        judge(f"{HERE}:{name}", torch.nn.Identity(), ROWS, "accuracy", 7)
