"""Ridge with a prior, from sums over batches: the plain equation on all columns at once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mergeline.calibration.forms import Taps
from mergeline.calibration.ridge import Moments, Solver


def gathered(x: Tensor, missing: Tensor, shift: Tensor, cuts: tuple[int, ...]) -> Moments:
    moments = Moments()
    for part, left in zip(x.tensor_split(cuts, dim=2), missing.tensor_split(cuts, dim=2), strict=True):
        taps = [Taps((part - shift[:, :, None],))]
        moments.add_inputs(taps)
        moments.add_missing(left, taps)
    return moments


@given(
    groups=st.integers(1, 3),
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 4),
    ridge=st.floats(1e-3, 1e3),
    cuts=st.lists(st.integers(0, 20), max_size=3).map(sorted).map(tuple),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_the_change_is_that_of_the_equation_however_the_columns_are_cut(
    groups: int, inputs: int, outputs: int, ridge: float, cuts: tuple[int, ...], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, inputs, 20, generator=generator) + 3
    missing = torch.randn(groups, outputs, 20, generator=generator) - 1
    shift = torch.randn(groups, inputs, generator=generator)

    moments = gathered(x, missing, shift, cuts)
    change, bias = Solver(moments, ridge, shift, centred=True).solve(moments)

    centred = (x - x.mean(dim=2, keepdim=True)).double()
    gram = centred @ centred.mT / 20
    damped = gram + ridge * gram.diagonal(dim1=1, dim2=2).mean() * torch.eye(inputs, dtype=torch.float64)
    expected = (missing.double() @ centred.mT / 20) @ damped.inverse()
    left = (missing.double() - expected @ x.double()).mean(dim=2) / (1 + ridge**2)
    torch.testing.assert_close(change, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(bias, left, rtol=1e-3, atol=1e-3)


def test_without_a_bias_columns_are_not_centred() -> None:
    x, missing, shift = torch.rand(1, 3, 50) + 1, torch.randn(1, 2, 50) + 2, torch.ones(1, 3)
    moments = gathered(x, missing, shift, (10,))
    change, bias = Solver(moments, 0.1, shift, centred=False).solve(moments)
    gram = x.double() @ x.double().mT / 50
    damped = gram + 0.1 * gram.diagonal(dim1=1, dim2=2).mean() * torch.eye(3)
    torch.testing.assert_close(change, missing.double() @ x.double().mT / 50 @ damped.inverse(), rtol=1e-4, atol=1e-4)
    assert not bias.any()


def test_an_infinite_ridge_changes_nothing() -> None:
    moments = gathered(torch.randn(1, 3, 9), torch.randn(1, 2, 9), torch.zeros(1, 3), ())
    change, bias = Solver(moments, float("inf"), torch.zeros(1, 3), centred=True).solve(moments)
    assert not change.any() and not bias.any()


def test_spread_and_means_are_those_of_the_outputs() -> None:
    x, shift, weights = torch.randn(2, 3, 40) + 2, torch.ones(2, 3), torch.randn(2, 4, 3).double()
    moments = gathered(x, torch.zeros(2, 4, 40), shift, (7,))
    solver = Solver(moments, 1.0, shift, centred=True)
    outputs = weights @ x.double()
    torch.testing.assert_close(solver.means(weights), outputs.mean(dim=2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(solver.spread(weights), outputs.var(dim=2, correction=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scale", "varies"), [(1.0, True), (0.0, False)])
def test_inputs_that_do_not_vary_are_noticed_and_the_condition_is_lapacks(scale: float, varies: bool) -> None:
    x = scale * torch.randn(1, 4, 200) + 5
    moments = gathered(x, torch.randn(1, 2, 200), torch.full((1, 4), 4.9), (100,))
    solver = Solver(moments, 0.01, torch.full((1, 4), 4.9), centred=True)
    assert solver.varies is varies
    if varies:
        gram = torch.cov(x[0].double(), correction=0)
        damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(4)
        exact = float(torch.linalg.cond(damped, 1))
        assert exact / 3 <= solver.condition <= exact * 1.01


@pytest.mark.parametrize("ridge", [1e-6, 1e-9, 1e-16, 1e-300])
def test_a_ridge_below_the_rounding_of_the_products_is_raised(ridge: float) -> None:
    x = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(0))
    x = torch.cat([x, x.sum(dim=1, keepdim=True), x[:, :2] * 0.3], dim=1)  # of rank 4
    moments = gathered(x, torch.ones(1, 2, 9), torch.zeros(1, 7), ())
    solver = Solver(moments, ridge, torch.zeros(1, 7), centred=True)
    change, bias = solver.solve(moments)
    assert ridge <= solver.ridge <= 1e-5 and solver.condition <= 1e8
    assert float(change.abs().max()) < 0.1 and float((bias - 1).abs().max()) < 0.1


def test_a_ridge_whose_square_is_beyond_float64_changes_nothing() -> None:
    moments = gathered(torch.randn(1, 3, 9), torch.randn(1, 2, 9), torch.zeros(1, 3), ())
    change, bias = Solver(moments, 1e200, torch.zeros(1, 3), centred=True).solve(moments)
    assert float(change.abs().max()) < 1e-99 and not bias.any()
