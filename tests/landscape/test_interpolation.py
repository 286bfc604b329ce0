"""Points between models are affine combinations, and the models themselves where one weight is 1."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergeline.checkpoints.readers import TensorReader
from mergeline.errors import InputError
from mergeline.landscape.interpolation import AffineReader, line_weights


def model(seed, **more):
    generator = torch.Generator().manual_seed(seed)
    state = {"weight": torch.randn(3, 4, generator=generator), "steps": torch.tensor(seed)}
    return TensorReader(state | more, f"model {seed}")


def test_a_point_is_the_weighted_sum_and_counters_are_those_of_the_first():
    first, second = model(1), model(2)
    point = AffineReader([first, second], [1.25, -0.25])
    torch.testing.assert_close(point["weight"], 1.25 * first["weight"] - 0.25 * second["weight"])
    torch.testing.assert_close(point.read_slice("weight", 1, 2), point["weight"][1:2])
    assert point["steps"] == 1
    assert point.dtype("weight") == torch.float32
    assert point.source == "1.25 model 1 + -0.25 model 2"


@given(st.integers(0, 2))
def test_a_model_is_a_point_bit_for_bit_whatever_the_others_hold(place):
    models = [model(seed) for seed in range(3)]
    broken = [TensorReader({"weight": torch.full((3, 4), torch.nan), "steps": torch.tensor(0)}) for _ in range(3)]
    readers = [models[at] if at == place else broken[at] for at in range(3)]
    point = AffineReader(readers, [float(at == place) for at in range(3)])
    assert torch.equal(point["weight"], models[place]["weight"])


def test_half_precision_is_rounded_once():
    start = TensorReader({"weight": torch.tensor([1.0], dtype=torch.bfloat16)})
    end = TensorReader({"weight": torch.tensor([1.0078125], dtype=torch.bfloat16)})
    assert float(AffineReader([start, end], [0.5, 0.5])["weight"]) == 1.00390625


def test_what_is_no_point_is_refused():
    with pytest.raises(InputError, match="as many weights, which sum to 1"):
        AffineReader([model(1), model(2)], [0.5, 0.4])
    with pytest.raises(InputError, match="as many weights"):
        AffineReader([model(1), model(2)], [1.0])
    with pytest.raises(InputError, match=r"model 2: tensor 'weight' has shape \[2\]"):
        AffineReader([model(1), model(2, weight=torch.zeros(2))], [0.5, 0.5])


def test_a_line_has_both_ends():
    assert line_weights(3) == [0.0, 0.5, 1.0]
    assert line_weights(11)[-1] == 1.0
