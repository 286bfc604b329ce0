"""A score beside that of the task's own model."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeline.evaluation.relative import Relative, mean_relative, relative
from mergeline.evaluation.score import Score

SCORES = st.builds(Score, st.floats(0.01, 1), st.floats(0, 0.1), st.just(100))


def test_the_change_and_the_share_that_is_kept_by_hand():
    found = relative(Score(0.6, 0.03, 100), Score(0.8, 0.04, 100))
    assert (found.change, found.change_error) == (pytest.approx(-0.2), pytest.approx(0.05))
    assert found.normalised == pytest.approx(0.75)
    assert found.normalised_error == pytest.approx(0.75 * math.hypot(0.03 / 0.6, 0.04 / 0.8))


@given(SCORES)
def test_a_model_beside_itself_changes_nothing_and_keeps_all(score):
    found = relative(score, score)
    assert (found.change, found.normalised) == (0, 1)


@given(SCORES, SCORES)
def test_a_better_score_is_a_gain_in_both(score, own):
    found = relative(score, own)
    assert (found.change > 0) == (found.normalised > 1)


def test_an_own_model_without_a_right_answer_has_no_share():
    none = relative(Score(0.5, 0.1, 10), Score(0.0, 0.0, 10))
    assert none == Relative(0.5, 0.1, None, None)
    both = mean_relative([none, relative(Score(0.5, 0.1, 10), Score(0.5, 0.0, 10))])
    assert both.change == pytest.approx(0.25)
    assert both.normalised is None


def test_the_mean_weighs_tasks_equally():
    mean = mean_relative([Relative(-0.2, 0.03, 0.5, 0.06), Relative(0.0, 0.04, 1.0, 0.08)])
    assert mean == Relative(pytest.approx(-0.1), pytest.approx(0.025), pytest.approx(0.75), pytest.approx(0.05))
