"""Laws of every registered method; a new one is under test the moment it is registered."""

import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from merging_cases import (
    BASES,
    FAMILIES,
    MODELS,
    SHAPES,
    StateDict,
    assert_same,
    evidence_of,
    number_of_models,
    run,
    statistics_of,
    stream,
)

from mergeline.checkpoints.output import prepare, publish
from mergeline.checkpoints.readers import TensorReader, open_checkpoint
from mergeline.checkpoints.writer import write_checkpoint
from mergeline.errors import InputError
from mergeline.merging import registry
from mergeline.merging.work import split, write_part

NAMES = registry.names()
every_method = pytest.mark.parametrize("method", NAMES)
with_base = pytest.mark.parametrize("method", registry.names(needs_base=True))
with_statistics = pytest.mark.parametrize("method", [name for name in NAMES if registry.get(name).statistics])
with_evidence = pytest.mark.parametrize("method", [name for name in NAMES if registry.get(name).evidence])
symmetric = pytest.mark.parametrize("method", [name for name in NAMES if registry.get(name).symmetric])
idempotent = pytest.mark.parametrize("method", [name for name in NAMES if registry.get(name).idempotent])
with_scale = pytest.mark.parametrize(
    "method", [name for name in registry.names(needs_base=True) if "scale" in registry.get(name).options]
)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# -- what no bit depends on --------------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunk_size_changes_no_bit(method: str, chunk: int) -> None:
    assert_same(run(method, chunk=chunk), run(method))


@every_method
def test_thread_count_changes_no_bit(method: str, threads: None) -> None:
    noise = torch.randn(5, 300, 401, generator=torch.Generator().manual_seed(0))
    base, models = {"w": noise[0]}, [{"w": noise[0] + 0.1 * part} for part in noise[1 : 1 + number_of_models(method)]]
    known = evidence_of(method, models)  # once: measuring it on more threads may round differently
    options = {"evidence": known} if known else {}
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(run(method, models, base, **options))
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


@every_method
@pytest.mark.parametrize("max_shard_size", [None, 300, 1200])
def test_shard_layout_changes_no_bit(tmp_path: Path, method: str, max_shard_size: int | None) -> None:
    count = number_of_models(method)
    base = tmp_path / "base"
    models = [tmp_path / str(number) for number in range(count)]
    for path, state in zip([base, *models], [BASES[0], *MODELS], strict=False):
        write_checkpoint(path, state, max_shard_size=max_shard_size)
    known = evidence_of(method, MODELS[:count])
    options = {"evidence": known} if known else {}
    assert_same(run(method, models, base, **options), run(method, MODELS[:count], BASES[0]))  # type: ignore[arg-type]


@symmetric
def test_model_order_changes_no_bit(method: str) -> None:
    """Sums over models run in float64 and are rounded once, so even their last bit is free of the order.

    What the first model decides is left out: integers and counters.
    """
    count = number_of_models(method)
    order = [index for index in (2, 3, 1, 0) if index < count]
    known = evidence_of(method, MODELS[:count])
    moved = {"evidence": [known[i] for i in order]} if known else {}
    straight = run(method)
    shuffled = run(method, [MODELS[i] for i in order], [FAMILIES[i] for i in order], **moved)
    for name, tensor in straight.items():
        if tensor.is_floating_point():
            assert torch.equal(shuffled[name], tensor), name


@every_method
def test_storage_in_half_precision_is_upcast_before_anything_else(method: str) -> None:
    def cast(state: StateDict, dtype: torch.dtype) -> StateDict:
        return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}

    for dtype in (torch.float16, torch.bfloat16):
        halves = [cast(model, dtype) for model in MODELS[: number_of_models(method)]]
        base = cast(BASES[0], dtype)
        upcast, wide_base = [cast(model, torch.float32) for model in halves], cast(base, torch.float32)
        wide = run(method, upcast, wide_base)
        assert_same(run(method, halves, base, out_dtype=torch.float32), wide)
        assert_same(run(method, halves, base), cast(wide, dtype))  # rounded once


@every_method
@pytest.mark.parametrize("chunk", [10, 1000])
def test_pieces_and_parts_hold_the_bits_of_the_tensors(tmp_path: Path, method: str, chunk: int) -> None:
    whole = run(method)
    expected = write_checkpoint(tmp_path / "whole", whole)
    assert write_checkpoint(tmp_path / "pieces", stream(method, chunk=chunk)) == expected
    statistics = statistics_of(method)
    layout = prepare(tmp_path / "parts", stream(method).specs)
    for part in reversed(split(stream(method), 5)):
        write_part(layout, stream(method, chunk=chunk, statistics=statistics), part)
    assert publish(layout) == expected


@every_method
def test_statistics_given_beforehand_give_the_same_bytes(method: str) -> None:
    statistics = json.loads(json.dumps(statistics_of(method, chunk=50)))
    assert (statistics is None) == (registry.get(method).statistics is None)
    assert_same(run(method, statistics=statistics), run(method))


@with_statistics
def test_statistics_of_another_merge_are_refused(method: str) -> None:
    count = number_of_models(method)
    smaller = [{name: model[name] for name in ("fc.bias", "fc.weight")} for model in (BASES[0], *MODELS[:count])]
    other = "breadcrumbs" if method == "ties" else "ties"
    for elsewhere in (
        statistics_of(method, smaller[1:], smaller[0], granularity="model"),
        statistics_of(other, MODELS[:count], granularity="model"),
    ):
        with pytest.raises(InputError, match=r"statistics of group 'model' are of .*compute them again"):
            run(method, statistics=elsewhere, granularity="model")


# -- what a result is --------------------------------------------------------------------------------------------------


@every_method
def test_the_merged_state_dict_has_the_names_shapes_and_dtypes_of_the_models(method: str) -> None:
    merged = run(method)
    assert list(merged) == sorted(MODELS[0])
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in merged.items()} == stream(method).specs
    for name, tensor in merged.items():
        assert tensor.shape == MODELS[0][name].shape, name
        assert tensor.dtype == MODELS[0][name].dtype, name


@every_method
def test_the_inputs_are_left_alone_and_not_shared(method: str) -> None:
    before = [{name: tensor.clone() for name, tensor in model.items()} for model in [*MODELS, *BASES]]
    for tensor in run(method).values():
        tensor.fill_(1)
    for model, copy in zip([*MODELS, *BASES], before, strict=True):
        assert_same(model, copy)


class Tied(TensorReader):
    """A checkpoint in which a tensor has a second name."""

    def __init__(self, state: StateDict) -> None:
        super().__init__(state | {"zz.tied": state["fc.weight"]})

    def tied(self) -> dict[str, str]:
        return {"zz.tied": "fc.weight"}


@every_method
def test_a_tied_tensor_is_merged_and_counted_once_and_stays_tied(tmp_path: Path, method: str) -> None:
    count = number_of_models(method)
    models, bases = [Tied(model) for model in MODELS[:count]], [Tied(base) for base in BASES]
    families = [bases[i % 2] for i in range(count)]
    known = {"evidence": evidence_of(method, MODELS[:count])} if registry.get(method).evidence else {}
    if registry.get(method).evidence == "fisher":
        known = {"evidence": [one | {"zz.tied": one["fc.weight"]} for one in known["evidence"] or []]}
    merged = run(method, models, families, **known)  # type: ignore[arg-type]
    assert merged["zz.tied"].data_ptr() == merged["fc.weight"].data_ptr()
    tied = merged.pop("zz.tied")
    assert_same(merged, run(method))
    write_checkpoint(tmp_path, stream(method, models, families, **known))  # type: ignore[arg-type]
    assert torch.equal(open_checkpoint(tmp_path).read("zz.tied"), tied)
    if registry.get(method).statistics:
        assert statistics_of(method, models, families) == statistics_of(method)  # type: ignore[arg-type]


@with_statistics
def test_statistics_of_single_tensors_are_those_of_models_of_one_tensor(method: str) -> None:
    count = number_of_models(method)
    names = ("conv.weight", "fc.bias", "layers.1.up.weight")
    bases = [{name: base[name] for name in names} for base in BASES]
    models = [{name: model[name] for name in names} for model in MODELS[:count]]
    families = [bases[index % 2] for index in range(count)]
    merged = run(method, models, families, granularity="tensor", **_gentle(method))
    for name in names:
        alone = [{name: base[name]} for base in BASES]
        single = run(method, [{name: x[name]} for x in models], [alone[i % 2] for i in range(count)], **_gentle(method))
        assert torch.equal(single[name], merged[name]), name


@with_statistics
def test_layers_are_groups_of_their_own(method: str) -> None:
    models = [{name: tensor for name, tensor in model.items() if name != "temperature"} for model in [*MODELS, *BASES]]
    bases, models = models[-2:], models[: number_of_models(method)]
    families = [bases[index % 2] for index in range(len(models))]
    statistics = statistics_of(method, models, families, granularity="layer", **_gentle(method))
    assert list(statistics) == ["bn", "conv", "fc", "layers.0", "layers.1"]
    assert list(statistics_of(method, granularity="model")) == ["model"]


def _gentle(method: str) -> dict[str, float]:
    """Of small tensors a small share would be nothing."""
    return {"keep_ratio": 0.8} if "keep_ratio" in registry.get(method).options else {}


@with_base
def test_models_that_equal_their_base_merge_to_it(method: str) -> None:
    base = BASES[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PCB says that nothing competes
        merged = run(method, [base] * min(3, number_of_models(method)), base)
    assert_same(merged, {name: base[name] for name in sorted(base)})


@with_scale
def test_scale_zero_gives_the_base(method: str) -> None:
    merged = run(method, base=BASES[0], scale=0.0)
    mean = run("average", MODELS[: number_of_models(method)])
    for name, tensor in merged.items():
        if name == "bn.running_mean":
            assert torch.equal(tensor, mean[name])
        elif tensor.is_floating_point():
            assert torch.equal(tensor, BASES[0][name]), name


@idempotent
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_equal_models_merge_to_themselves(method: str, n: int) -> None:
    least, most = registry.get(method).models
    if n < least or (most is not None and n > most):
        pytest.skip(f"{method} does not merge {n} models")
    merged = run(method, [MODELS[0]] * n, BASES[0])
    for name, tensor in merged.items():
        assert torch.allclose(tensor.float(), MODELS[0][name].float(), rtol=1e-4, atol=1e-5), name


# -- refusals ----------------------------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tensor", ["fc.weight", "bn.running_mean", "temperature"])
def test_a_model_that_is_not_finite_is_refused_by_file_and_tensor(
    tmp_path: Path, method: str, tensor: str, value: float
) -> None:
    count = number_of_models(method)
    models = [dict(model) for model in MODELS[:count]]
    models[-1][tensor] = (
        torch.full(SHAPES[tensor], 0.5).index_fill_(0, torch.tensor([0]), value)
        if SHAPES[tensor]
        else torch.tensor(value)
    )
    path = tmp_path / "damaged.pt"
    torch.save(models[-1], path)
    given = [*models[:-1], path]
    known = evidence_of(method, MODELS[:count])
    with pytest.raises(InputError, match=rf"damaged\.pt: tensor '{tensor}' holds NaN or infinity"):
        run(method, given, FAMILIES[:count], **({"evidence": known} if known else {}))  # type: ignore[arg-type]


@with_base
def test_a_base_that_is_not_finite_is_refused_by_tensor(method: str) -> None:
    base = dict(BASES[0]) | {"fc.bias": torch.full((10,), math.nan)}
    with pytest.raises(InputError, match=r"base: tensor 'fc\.bias' holds NaN"):
        run(method, base=base)


@with_evidence
def test_evidence_that_is_not_finite_is_refused_by_tensor(method: str) -> None:
    known = evidence_of(method, MODELS[: number_of_models(method)]) or []
    known[-1]["fc.weight"] = known[-1]["fc.weight"].clone().fill_(math.nan)
    with pytest.raises(InputError, match=rf"evidence\[{len(known) - 1}\]: tensor 'fc\.weight' holds NaN"):
        run(method, evidence=known)


@every_method
def test_too_few_or_too_many_models_are_refused(method: str) -> None:
    least, most = registry.get(method).models
    for count in [least - 1, *([most + 1] if most else [])]:
        models = (MODELS * 9)[:count]
        with pytest.raises(InputError, match=r"merges .*, not \d|non-empty sequence"):
            run(method, models, BASES[0])


# -- laws of one method ------------------------------------------------------------------------------------------------


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
