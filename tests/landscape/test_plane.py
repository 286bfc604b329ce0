"""The plane holds its three models exactly, and distances on it are those between the models."""

from math import dist

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergeline.checkpoints.readers import TensorReader
from mergeline.landscape.distances import inner_products
from mergeline.landscape.interpolation import AffineReader
from mergeline.landscape.plane import lay_plane

NAMES = ["a", "b", "merged", "other"]


def models(seed, count=4, size=40):
    generator = torch.Generator().manual_seed(seed)
    return [
        TensorReader(
            {"deep": torch.randn(size // 4, 4, generator=generator), "bias": torch.randn(1, generator=generator)}
        )
        for _ in range(count)
    ]


def plane_of(readers, *, shown=None, names=NAMES, points=5, margin=0.25):
    products = inner_products(readers, readers[0].names(), chunk=7)
    return lay_plane(names[: len(readers)], products, shown=shown or len(readers), points=points, margin=margin)


def vector(reader):
    return torch.cat([reader[name].reshape(-1) for name in reader.names()]).double()


@given(st.integers(0, 10**6))
def test_the_coordinates_of_the_three_models_give_them_back_bit_for_bit(seed):
    readers = models(seed)
    plane = plane_of(readers)
    for model, reader in zip(plane.models[:3], readers, strict=False):
        point = AffineReader(readers[:3], plane.weights(model.x, model.y))
        assert all(torch.equal(point[name], reader[name]) for name in reader.names())
        assert model.off == 0


@given(st.integers(0, 10**6), st.floats(-2, 2), st.floats(-2, 2))
def test_points_are_where_gram_and_schmidt_put_them(seed, x, y):
    readers = models(seed)
    plane = plane_of(readers)
    a, b, c, other = map(vector, readers)
    u = (b - a) / (b - a).norm()
    rest = (c - a) - ((c - a) @ u) * u
    v = rest / rest.norm()
    point = vector(AffineReader(readers[:3], plane.weights(x, y)))
    torch.testing.assert_close(point, a + x * u + y * v, atol=1e-4, rtol=1e-4)
    placed = plane.models[3]
    nearest = a + placed.x * u + placed.y * v
    assert (other - nearest) @ u == pytest.approx(0, abs=1e-6)
    assert (other - nearest).norm() == pytest.approx(placed.off, rel=1e-6)


def test_distances_on_the_plane_are_those_between_the_models():
    readers = models(3)
    places = [(model.x, model.y) for model in plane_of(readers).models]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        between = float((vector(readers[first]) - vector(readers[second])).norm())
        assert dist(places[first], places[second]) == pytest.approx(between, rel=1e-9)


def test_the_grid_covers_the_models_and_the_margin():
    plane = plane_of(models(1), points=9, margin=0.5)
    xs, ys = ([getattr(model, axis) for model in plane.models[:3]] for axis in "xy")
    beyond = 0.5 * max(max(xs) - min(xs), max(ys) - min(ys))
    assert (len(plane.xs), len(plane.ys)) == (9, 9)
    assert (plane.xs[0], plane.xs[-1]) == pytest.approx((min(xs) - beyond, max(xs) + beyond))
    assert (plane.ys[0], plane.ys[-1]) == pytest.approx((min(ys) - beyond, max(ys) + beyond))
    assert plane.row(0)[0] == plane.weights(plane.xs[0], plane.ys[0])


def test_a_merged_model_on_the_line_of_the_two_leaves_the_plane_to_another():
    first, second, _, other = models(2)
    middle = AffineReader([first, second], [0.5, 0.5])
    plane = plane_of([first, second, middle, other], shown=3)
    assert plane.anchors == ["a", "b", "other"]
    merged = plane.models[2]
    assert (merged.x, merged.y) == pytest.approx((plane.models[1].x / 2, 0), abs=1e-6)
    assert [model.name for model in plane.models] == NAMES
    assert [model.name for model in plane_of(models(2), shown=3).models] == NAMES[:3], "spare models are not shown"


def test_models_on_one_line_have_no_plane_and_that_is_said():
    first, second = models(5, 2)
    middle = AffineReader([first, second], [0.5, 0.5])
    assert plane_of([first, second, middle]).problem.startswith("a, b, merged lie on one line")
    assert plane_of([first, first, second]).problem.startswith("a and b are the same model")
    assert plane_of([first, second, first]).problem, "a copy of an end spans nothing"
