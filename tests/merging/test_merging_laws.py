"""Laws of every registered method; a new one is under test the moment it is registered."""

import json
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mergeline.merging import registry
from mergeline.merging.engine import merge, method_statistics

StateDict = dict[str, Tensor]

every_method = pytest.mark.parametrize("method", registry.names())
with_base = pytest.mark.parametrize("method", registry.names(needs_base=True))


def state_dict(seed: int, near: StateDict | None = None) -> StateDict:
    """A small network with everything that occurs: matrices, vectors, a scalar, an empty tensor, buffers, integers."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (6, 3, 3, 3), "bn.weight": (6,), "bn.running_mean": (6,), "fc.weight": (10, 24)}
    shapes |= {"fc.bias": (10,), "temperature": (), "nothing": (0, 4)}
    noise = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state = noise if near is None else {name: near[name] + 0.1 * noise[name] for name in shapes}
    return state | {"bn.num_batches_tracked": torch.tensor(seed), "fc.mask": torch.tensor([seed % 2 == 0, True])}


BASES = [state_dict(0), state_dict(1)]
MODELS = [state_dict(seed, near=BASES[seed % 2]) for seed in (10, 11, 12, 13)]


def run(method: str, models: list[StateDict], base: Any = None, **options: Any) -> StateDict:
    """The merged state dict; `base` is dropped for methods that need none."""
    needs_base = registry.get(method).needs_base
    return dict(merge(models, base=base if needs_base else None, method=method, **options))


def assert_same(left: StateDict, right: StateDict) -> None:
    assert list(left) == list(right)
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert torch.equal(left[name], right[name]), name


FAMILIES = [BASES[0], BASES[1], BASES[0], BASES[1]]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@every_method
def test_the_merged_state_dict_has_the_names_shapes_and_dtypes_of_the_models(method: str) -> None:
    merged = run(method, MODELS, FAMILIES)
    assert list(merged) == sorted(MODELS[0])
    for name, tensor in merged.items():
        assert tensor.shape == MODELS[0][name].shape, name
        assert tensor.dtype == MODELS[0][name].dtype, name


@every_method
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunk_size_changes_no_bit(method: str, chunk: int) -> None:
    assert_same(run(method, MODELS, FAMILIES, chunk=chunk), run(method, MODELS, FAMILIES))


@every_method
def test_thread_count_changes_no_bit(method: str, threads: None) -> None:
    noise = torch.randn(3, 300, 401, generator=torch.Generator().manual_seed(0))
    base, models = {"w": noise[0]}, [{"w": noise[0] + 0.1 * noise[1]}, {"w": noise[0] + 0.1 * noise[2]}]
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(run(method, models, base))
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


@every_method
def test_model_order_changes_no_bit(method: str) -> None:
    """Sums over models run in float64 and are rounded once, so even their last bit is free of the order.

    What the first model decides is left out: integers and counters.
    """
    order = [2, 3, 1, 0]
    straight = run(method, MODELS, FAMILIES)
    shuffled = run(method, [MODELS[i] for i in order], [FAMILIES[i] for i in order])
    for name, tensor in straight.items():
        if tensor.is_floating_point():
            assert torch.equal(shuffled[name], tensor), name


@every_method
def test_storage_in_half_precision_is_upcast_before_anything_else(method: str) -> None:
    def cast(state: StateDict, dtype: torch.dtype) -> StateDict:
        return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}

    for dtype in (torch.float16, torch.bfloat16):
        halves, base = [cast(model, dtype) for model in MODELS], cast(BASES[0], dtype)
        upcast, wide_base = [cast(model, torch.float32) for model in halves], cast(base, torch.float32)
        wide = run(method, upcast, wide_base)
        assert_same(run(method, halves, base, out_dtype=torch.float32), wide)
        assert_same(run(method, halves, base), cast(wide, dtype))  # rounded once


@every_method
def test_statistics_given_beforehand_give_the_same_bytes(method: str) -> None:
    base = FAMILIES if registry.get(method).needs_base else None
    statistics = json.loads(json.dumps(method_statistics(MODELS, base=base, method=method, chunk=50)))
    assert (statistics is None) == (registry.get(method).statistics is None)
    assert_same(run(method, MODELS, FAMILIES, statistics=statistics), run(method, MODELS, FAMILIES))


@every_method
def test_the_inputs_are_left_alone_and_not_shared(method: str) -> None:
    before = [{name: tensor.clone() for name, tensor in model.items()} for model in MODELS]
    for tensor in run(method, MODELS, FAMILIES).values():
        tensor.fill_(1)
    for model, copy in zip(MODELS, before, strict=True):
        assert_same(model, copy)


@with_base
def test_models_that_equal_their_base_merge_to_it(method: str) -> None:
    base = BASES[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PCB says that nothing competes
        merged = run(method, [base, base, base], base)
    assert_same(merged, {name: base[name] for name in sorted(base)})


@pytest.mark.parametrize("method", [m for m in registry.names(needs_base=True) if "scale" in registry.get(m).options])
def test_scale_zero_gives_the_base(method: str) -> None:
    merged = run(method, MODELS, BASES[0], scale=0.0)
    mean = run("average", MODELS)
    for name, tensor in merged.items():
        if name == "bn.running_mean":
            assert torch.equal(tensor, mean[name])
        elif tensor.is_floating_point():
            assert torch.equal(tensor, BASES[0][name]), name


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10])
def test_the_average_of_equal_models_is_that_model(n: int) -> None:
    model = MODELS[0]
    assert_same(run("average", [model] * n), {name: model[name] for name in sorted(model)})
    weighted = run("average", [model] * n, weights=[0.1 + i for i in range(n)])
    assert_same(weighted, {name: model[name] for name in sorted(model)})


@pytest.mark.parametrize("n", [1, 2, 4])
def test_task_arithmetic_of_equal_models_moves_scale_times_n_steps(n: int) -> None:
    """So scale 1/n, and a single model at scale 1, give the model back (but for the rounding of model - base)."""
    model, base = MODELS[0], BASES[0]
    merged = run("task_arithmetic", [model] * n, base, scale=1 / n)
    for name in ("conv.weight", "fc.weight", "temperature"):
        assert torch.allclose(merged[name], model[name], rtol=1e-6, atol=1e-7), name


@pytest.mark.parametrize("n", [1, 3])
def test_pcb_of_equal_models_keeps_the_strongest_share_of_their_task_vector(n: int) -> None:
    """Not the model itself: what loses in the competition stays at the base, one model included."""
    model, base = MODELS[0], BASES[0]
    merged = run("pcb", [model] * n, base, keep_ratio=0.25, clip_ratio=0.0)
    names = [name for name in sorted(model) if model[name].is_floating_point() and name != "bn.running_mean"]
    moved = torch.cat([(merged[name] != base[name]).flatten() for name in names])
    assert moved.sum() == len(moved) - int(len(moved) * 0.75) - 1
    there = torch.cat([model[name].flatten() for name in names])
    assert torch.allclose(torch.cat([merged[name].flatten() for name in names])[moved], there[moved], atol=1e-6)
