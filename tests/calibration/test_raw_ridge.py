"""The ridge from raw inputs: the plain equation, whichever side is smaller, and the means."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mergeline.calibration.heads import Heads
from mergeline.calibration.raw_ridge import raw_ridge, ridge_weights
from mergeline.errors import InputError


@given(
    count=st.integers(2, 12),
    inputs=st.integers(1, 12),
    outputs=st.integers(1, 3),
    ridge=st.floats(1e-3, 1e3),
    seed=st.integers(0, 99),
)
@settings(max_examples=50, deadline=None)
def test_the_weights_are_those_of_the_equation_whichever_side_is_smaller(
    count: int, inputs: int, outputs: int, ridge: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(count, size, generator=generator, dtype=torch.float64) for size in (inputs, outputs))
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    gram = x.T @ x / count
    damped = gram + ridge * gram.diagonal().mean() * torch.eye(inputs, dtype=torch.float64)
    torch.testing.assert_close(ridge_weights(x, y, ridge), damped.inverse() @ x.T @ y / count, rtol=1e-6, atol=1e-9)


def linear_models() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval() for _ in range(2)]


def test_it_is_the_mean_of_linear_models_and_centred_where_that_is_asked() -> None:
    modules, batches = linear_models(), list(torch.randn(60, 1, 3, 4).split(25))
    whole = torch.cat(batches)
    with torch.no_grad():
        mean = (modules[0](whole) + modules[1](whole)) / 2
        plain = raw_ridge(modules, batches, ridge=1e-9, centre=False)(whole)
        centred = raw_ridge(modules, batches, ridge=1e-9, centre=True)(whole)
    torch.testing.assert_close(plain, mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(centred, mean - mean.mean(dim=0), rtol=1e-4, atol=1e-4)


def test_heads_give_the_target_where_they_are_given() -> None:
    modules, x = linear_models(), torch.randn(60, 1, 3, 4)
    heads = Heads([torch.eye(4)[:2], torch.eye(4)[2:]])
    with torch.no_grad():
        wanted = heads([module(x) for module in modules], -1)
        given = raw_ridge(modules, [x], ridge=1e-9, centre=False, heads=heads)(x)
    left = (wanted - given).double()
    assert left.mean(dim=0).abs().max() < 1e-3
    assert (x.flatten(1).double().T @ left / len(x)).abs().max() < 1e-3  # nothing linear is left


def test_inputs_that_do_not_vary_give_the_mean() -> None:
    modules, x = linear_models(), torch.ones(5, 1, 3, 4)
    with torch.no_grad():
        mean = (modules[0](x) + modules[1](x)) / 2
        torch.testing.assert_close(raw_ridge(modules, [x], ridge=0.01, centre=False)(x), mean, rtol=1e-4, atol=1e-4)


def test_outputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="the task models' outputs"):
        raw_ridge(linear_models(), [torch.full((3, 1, 3, 4), torch.nan)], ridge=0.01, centre=True)
