"""Barriers that are known in closed form."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergeline.checkpoints.readers import TensorReader
from mergeline.landscape.barrier import barrier
from mergeline.landscape.interpolation import AffineReader, line_weights
from mergeline.landscape.landscape import MEAN, Points, line_of

SHARES = line_weights(11)


def along(loss, start, end):
    """A loss of the parameters at the points of a line between two checkpoints."""
    readers = [TensorReader({"weight": torch.tensor(values)}) for values in (start, end)]
    return [float(loss(AffineReader(readers, [1 - share, share])["weight"])) for share in SHARES]


@given(st.lists(st.tuples(st.floats(-3, 3, width=32), st.floats(-3, 3, width=32)), min_size=1, max_size=5))
def test_a_quadratic_hill_has_a_quarter_of_the_squared_distance_and_a_valley_none(pairs):
    start, end = (list(values) for values in zip(*pairs, strict=True))
    distance = sum((a - b) ** 2 for a, b in pairs)
    hill = barrier(SHARES, along(lambda x: -(x.double() ** 2).sum(), start, end))
    assert hill.height == pytest.approx(distance / 4, abs=1e-4)
    valley = barrier(SHARES, along(lambda x: (x.double() ** 2).sum(), start, end))
    assert valley.height == pytest.approx(0, abs=1e-4)


def test_between_two_wells_it_is_the_hill_in_the_middle():
    found = barrier(SHARES, along(lambda x: ((x**2 - 1) ** 2).sum(), [-1.0], [1.0]))
    assert (found.height, found.at) == (1.0, 0.5)


def test_ends_of_different_height_are_no_barrier():
    assert barrier([0.0, 0.5, 1.0], [0.0, 2.0, 4.0]).height == 0
    assert barrier([0.0, 0.25, 1.0], [0.0, 2.0, 4.0]).model_dump() == {"height": 1.0, "at": 0.25}


def test_the_mean_over_the_tasks_has_a_barrier_of_its_own():
    points = Points(
        losses={"rises": [1.0, 3.0, 1.0], "sinks": [1.0, 0.0, 1.0]},
        accuracies={"rises": [0.9, 0.5, 0.9], "sinks": [0.9, 0.9, 0.9]},
    )
    (curve,) = line_of("a", "b", [0.0, 0.5, 1.0], {"before": points}).curves
    assert {task: found.height for task, found in curve.barriers.items()} == {MEAN: 0.5, "rises": 2.0, "sinks": 0.0}
    assert curve.accuracy_drops[MEAN].height == pytest.approx(0.2)
