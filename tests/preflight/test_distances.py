import math
from itertools import pairwise

import pytest
import torch

from mergeline.checkpoints.readers import TensorReader, open_checkpoint
from mergeline.preflight.distances import alarm, comparable, distance, spans
from tests.conftest import ROOT

MODELS = {
    "base-a": ("a-clean-02478", "a-clean-13569"),
    "base-b": ("b-half-12679", "b-half-03458"),
}


def shipped(name):
    reader = open_checkpoint(ROOT / f"data/zoo/{name}.safetensors")
    reader.source = name
    return reader


def test_distance_is_norm_ratio_and_cosine():
    generator = torch.Generator().manual_seed(0)
    base = {"a": torch.randn(300, 70, generator=generator), "b": torch.randn(5, 1, generator=generator)}
    model = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
    found = distance(TensorReader(model), TensorReader(base))
    one, other = (torch.cat([state[name].flatten() for name in "ab"]).double() for state in (model, base))
    assert found.ratio == pytest.approx(float((one - other).norm() / other.norm()), rel=1e-5)
    assert found.cosine == pytest.approx(float(one @ other / one.norm() / other.norm()), abs=1e-6)
    assert found.share == 1


def test_a_sample_says_what_the_whole_says_and_always_the_same():
    generator = torch.Generator().manual_seed(1)
    base = {"large": torch.randn(700, 1000, generator=generator), "small": torch.ones(16)}
    model = {name: tensor + 0.2 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
    whole = distance(TensorReader(model), TensorReader(base))
    part = distance(TensorReader(model), TensorReader(base), sampled=70_000)
    assert part == distance(TensorReader(model), TensorReader(base), sampled=70_000)
    assert 0.09 < part.share < 0.12
    assert part.ratio == pytest.approx(whole.ratio, rel=0.02)
    assert part.cosine == pytest.approx(whole.cosine, abs=0.01)


def test_what_was_not_looked_at_whole_is_not_called_the_same():
    base = {"w": torch.ones(300, 300)}
    model = {"w": base["w"].clone()}
    assert distance(TensorReader(model), TensorReader(base)).same
    model["w"][-1, -1] = 2
    part = distance(TensorReader(model), TensorReader(base), sampled=8192)
    assert (part.ratio, part.same) == (0, False)
    assert alarm(part, []) is None


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 1_000_000])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.999, 1.0])
def test_what_is_looked_at_lies_in_the_tensor_and_overlaps_nowhere(size, share):
    found = spans(size, share)
    assert all(0 <= start < stop <= size for start, stop in found)
    assert all(stop <= following for (_, stop), (following, _) in pairwise(found))
    assert sum(stop - start for start, stop in found) >= math.floor(size * share)


def test_statistics_counters_and_ties_are_left_out():
    weight = torch.randn(3, 3)
    state = {
        **{"weight": weight, "tied": weight, "bn.running_mean": torch.ones(3), "other": torch.ones(2)},
        **{"bn.num_batches_tracked": torch.tensor(3), "flags": torch.tensor([True])},
    }
    base = {name: torch.ones(4) if name == "other" else tensor.clone() for name, tensor in state.items()}
    assert comparable(TensorReader(state), TensorReader(base)) == ["tied"]


@pytest.mark.parametrize("base", MODELS)
def test_shipped_models_raise_an_alarm_with_the_wrong_base_only(base):
    other = next(name for name in MODELS if name != base)
    for name in MODELS[base]:
        right, wrong = distance(shipped(name), shipped(base)), distance(shipped(name), shipped(other))
        assert alarm(right, []) is None
        assert f"write base: {base}" in alarm(wrong, [right])
        assert "check which checkpoint it was trained from" in alarm(wrong, [])


def test_a_model_that_is_its_base_is_an_alarm():
    found = distance(shipped("base-a"), shipped("base-a"))
    assert (found.ratio, found.cosine) == (0, pytest.approx(1))
    assert "task vector is zero" in alarm(found, [])


def test_nothing_to_compare_is_no_distance():
    zero, one = {"a": torch.zeros(3, 1)}, {"a": torch.ones(3, 1)}
    assert distance(TensorReader(one), TensorReader(zero)) is None
    assert distance(TensorReader(one), TensorReader({"b": torch.ones(3, 1)})) is None
    assert distance(TensorReader({"gain": torch.ones(3)}), TensorReader({"gain": torch.ones(3)})) is None
    lost = distance(TensorReader(zero), TensorReader(one))
    assert (lost.ratio, lost.cosine) == (1, 0)


def test_nan_met_on_the_way_names_the_tensor():
    with pytest.raises(ValueError, match=r"^a$"):
        distance(TensorReader({"a": torch.tensor([[1.0, math.nan]])}), TensorReader({"a": torch.ones(1, 2)}))


def tiny(seed):
    """Small weights beside gains near 1, as small models have them."""
    generator = torch.Generator().manual_seed(seed)
    weights = {f"{i}.weight": 0.02 * torch.randn(8, 8, generator=generator) for i in range(4)}
    return weights | {f"{i}.norm.weight": 1 + 0.01 * torch.randn(8, generator=generator) for i in range(4)}


def test_gains_near_one_do_not_make_the_wrong_base_look_right():
    found = distance(TensorReader(tiny(0)), TensorReader(tiny(1)))
    assert "is hardly the base of" in alarm(found, [])
    trained = {name: tensor * 1.05 for name, tensor in tiny(0).items()}
    assert alarm(distance(TensorReader(trained), TensorReader(tiny(0))), []) is None


def test_a_model_of_which_only_vectors_were_trained_is_not_its_base():
    trained = {name: tensor + 0.1 if "norm" in name else tensor for name, tensor in tiny(0).items()}
    found = distance(TensorReader(trained), TensorReader(tiny(0)))
    assert (found.ratio, found.same, alarm(found, [])) == (0, False, None)
    assert "task vector is zero" in alarm(distance(TensorReader(tiny(0)), TensorReader(tiny(0))), [])
