"""Checkpoints that cannot be merged are refused by name of checkpoint and tensor, before anything is yielded."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mergeline.checkpoints.readers import TensorReader
from mergeline.errors import InputError
from mergeline.merging import registry
from mergeline.merging.engine import merge, method_statistics

StateDict = dict[str, Tensor]


def model(seed: int = 0) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "layer.weight": torch.randn(20, 10, generator=generator),
        "layer.bias": torch.randn(20, generator=generator),
        "bn.running_mean": torch.randn(20, generator=generator),
        "ids": torch.arange(3),
    }


@pytest.mark.parametrize("call", [merge, method_statistics])
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"method": "pbc"}, r"'pbc' does not exist; did you mean 'pcb'\?"),
        ({"method": "pcb", "keep_ratoi": 0.1}, r"'pcb' has no option 'keep_ratoi'; did you mean 'keep_ratio'\?"),
        ({"method": "pcb"}, "'pcb' needs `base`"),
        ({"method": "average", "chunk": 0}, "chunk must be a whole number, at least 1, not 0"),
        ({"method": "average", "chunk": "5"}, "chunk must be a whole number, at least 1, not '5'"),
        ({"base": [model()]}, "there are 1 bases for 2 task models"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(
    call: Callable[..., object], arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        call([model(), model(1)], **arguments)


def test_wrong_output_arguments_are_refused_at_the_call() -> None:
    with pytest.raises(InputError, match="onto must be 'mean' or 'first', not 'last'"):
        merge([model()], base=model(), onto="last")  # type: ignore[arg-type]
    for dtype, told in ((torch.int8, r"torch\.int8"), ("float16", "'float16'")):
        with pytest.raises(InputError, match=rf"out_dtype must be a floating torch\.dtype, not {told}"):
            merge([model()], base=model(), out_dtype=dtype)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'average' uses no statistics"):
        merge([model()], method="average", statistics={})


def test_numbers_beyond_float32_are_not_called_infinite() -> None:
    large = {"w": torch.full((2,), 1e39, dtype=torch.float64)}
    with pytest.raises(InputError, match=r"readers\[0\]: tensor 'w' holds numbers beyond the range of float32"):
        dict(merge([large, large], method="average"))


def test_a_tensor_without_numbers_is_refused() -> None:
    with pytest.raises(InputError, match="tensor 'w' is on the device 'meta', without numbers"):
        merge([{"w": torch.ones(2, device="meta")}], method="average")


def test_readers_may_come_from_an_iterator() -> None:
    models = [model(1), model(2)]
    merged = dict(merge(iter(models), method="average"))  # type: ignore[arg-type]
    assert torch.equal(merged["layer.bias"], dict(merge(models, method="average"))["layer.bias"])


@pytest.mark.parametrize("readers", [[], (), "model.safetensors", model()])
def test_readers_must_be_a_sequence_of_checkpoints(readers: Any) -> None:
    with pytest.raises(InputError, match="non-empty sequence of checkpoints"):
        merge(readers, method="average")


def test_tensors_that_do_not_match_are_listed_with_the_nearest_name() -> None:
    other = model()
    other["layer.wieght"] = other.pop("layer.weight")
    other["layer.bias"] = torch.zeros(21)
    other["ids"] = torch.zeros(3)
    with pytest.raises(InputError) as caught:
        merge([model(), other], method="average")
    assert str(caught.value) == (
        "readers[1] does not hold the same tensors as readers[0]: "
        "'layer.weight' is missing (did you mean 'layer.wieght'?); "
        "'layer.wieght' is extra (did you mean 'layer.weight'?); "
        "'ids' is torch.float32, not torch.int64; "
        "'layer.bias' has shape [21], not [20]."
    )


def test_a_base_that_does_not_match_is_named() -> None:
    base = model()
    del base["layer.bias"]
    with pytest.raises(InputError, match=r"base does not hold .*'layer.bias' is missing"):
        merge([model(), model(1)], base=base)
    with pytest.raises(InputError, match=r"base\[1\] does not hold"):
        merge([model(), model(1)], base=[model(), base])


def test_a_long_list_of_faults_is_cut() -> None:
    with pytest.raises(InputError, match="and 13 more"):
        merge([{f"t{i}": torch.zeros(1) for i in range(20)}, {"unlike": torch.zeros(1)}], method="average")


def test_empty_and_complex_checkpoints_are_refused() -> None:
    with pytest.raises(InputError, match=r"readers\[0\] holds no tensors"):
        merge([{}], method="average")
    with pytest.raises(InputError, match=r"readers\[0\]: tensor 'w' is complex"):
        merge([{"w": torch.zeros(2, dtype=torch.complex64)}], method="average")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tensor", ["layer.weight", "bn.running_mean"])
@pytest.mark.parametrize("method", ["average", "task_arithmetic", "pcb"])
def test_nan_and_infinity_in_a_model_are_refused_by_file_and_tensor(
    tmp_path: Path, value: float, tensor: str, method: str
) -> None:
    damaged = model(1)
    damaged[tensor].view(-1)[-1] = value
    save_file(damaged, tmp_path / "damaged.safetensors")
    with pytest.raises(InputError, match=rf"damaged\.safetensors: tensor '{tensor}' holds NaN or infinity"):
        dict(merge([model(), tmp_path / "damaged.safetensors"], base=model(2), method=method))


def test_nan_in_a_base_is_refused() -> None:
    base = model()
    base["layer.bias"][3] = math.nan
    with pytest.raises(InputError, match=r"base: tensor 'layer\.bias' holds NaN"):
        dict(merge([model(1)], base=base, method="task_arithmetic"))
    with pytest.raises(InputError, match=r"base: tensor 'layer\.bias' holds NaN"):
        method_statistics([model(1)], base=base)


def test_a_result_too_large_for_its_dtype_is_refused_by_name() -> None:
    large = {"a": torch.ones(2), "w": torch.full((2,), 1e5)}
    iterator = merge([large, large], method="average", out_dtype=torch.float16)
    assert next(iterator)[0] == "a"
    with pytest.raises(InputError, match=r"merged tensor 'w' overflows torch\.float16"):
        next(iterator)


@pytest.mark.parametrize("weights", [[1.0], [2.0, -1.0], [0.0, 0.0]])
def test_weights_must_be_one_per_model_and_not_negative(weights: list[float]) -> None:
    with pytest.raises(InputError, match="weights must be 2 numbers >= 0"):
        dict(merge([model(), model(1)], method="average", weights=weights))


@pytest.mark.parametrize("options", [{"keep_ratio": 0.2}, {"variant": "nlp"}, {"clip_ratio": 0.3}])
def test_statistics_of_other_options_are_refused(options: dict[str, Any]) -> None:
    models, base = [model(1), model(2)], model()
    statistics = method_statistics(models, base=base)
    with pytest.raises(InputError, match=r"statistics of group 'model' are of .*\"keep_ratio\": 0\.1"):
        merge(models, base=base, statistics=statistics, **options)
    dict(merge(models, base=base, statistics=statistics, scale=2.0))


def test_what_stands_beside_the_groups_in_statistics_is_left_aside() -> None:
    models, base = [model(1), model(2)], model()
    statistics: Any = method_statistics(models, base=base)
    merged = dict(merge(models, base=base, statistics={**statistics, "version": 1}))
    assert torch.equal(merged["layer.weight"], dict(merge(models, base=base))["layer.weight"])


def test_a_keep_ratio_that_keeps_nothing_of_a_small_model_is_refused() -> None:
    with pytest.raises(InputError, match="keeps none of 220 parameters"):
        dict(merge([model(1)], base=model(), keep_ratio=0.004))


@pytest.mark.parametrize(
    ("patterns", "complaint"),
    [
        (
            {"*.wieght": {"scale": 1.0}},
            r"options_by_pattern: '\*\.wieght': no merged tensor matches; did you mean '\*\.weight'",
        ),
        (
            {"layer": {"scale": 1.0}},
            r"'layer': no merged tensor matches; a pattern matches whole names: .* '\*layer\*'\?",
        ),
        ({"ids": {"scale": 1.0}}, "'ids': no merged tensor matches"),
        ({"*": {"scael": 1.0}}, r"'\*': method 'task_arithmetic' has no option 'scael'; did you mean 'scale'\?"),
        ({"*": {"scale": "1"}}, r"'\*': method 'task_arithmetic': option 'scale' is '1'"),
        ({"*": {}}, r"'\*': sets no options; write \{option: value\}"),
        ({"*": 0.1}, r"'\*': sets no options"),
    ],
)
def test_patterns_that_match_nothing_or_set_wrong_options_are_refused(patterns: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        merge([model(1)], base=model(), method="task_arithmetic", options_by_pattern=patterns)


def test_a_pattern_that_reaches_a_tied_name_only_says_whose_options_count() -> None:
    class Tied(TensorReader):
        def tied(self) -> dict[str, str]:
            return {"lm_head.weight": "layer.weight"}

    state = model() | {"lm_head.weight": model()["layer.weight"]}
    with pytest.raises(
        InputError, match=r"'lm_head\.\*': matches only .*'lm_head\.weight', which is tied to 'layer\.weight'"
    ):
        merge([Tied(state)], base=Tied(state), options_by_pattern={"lm_head.*": {"scale": 1.0}})


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"granularity": "tensors"}, r"granularity 'tensors' does not exist; did you mean 'tensor'\?"),
        ({"granularity": "layer", "method": "average"}, "'average' gathers no statistics, so it has no granularity"),
        ({"evidence": [{}, {}]}, "'pcb' uses no evidence; leave `evidence` out"),
        ({"statistics": {}}, "the statistics hold no group 'model'"),
        ({"statistics": {"model": [1]}}, "the statistics hold no group 'model'"),
        ({"statistics": "statistics.json"}, "statistics must be what `method_statistics` gave"),
    ],
)
def test_wrong_granularity_evidence_and_statistics_are_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        merge([model(1), model(2)], **{"base": model(), **arguments})


@pytest.fixture
def with_fisher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    @registry.method("weighed", needs_base=False, evidence="fisher")
    def kernel(models: Tensor, *, evidence: Tensor) -> Tensor:
        """Products."""
        return (models * evidence).sum(dim=0)


@pytest.mark.parametrize(
    ("evidence", "complaint"),
    [
        (None, "method 'weighed' needs `evidence`: the diagonal Fisher information of each task model"),
        ([{}], "evidence must be a sequence of 2 checkpoints"),
        (
            [model(), {"layer.bias": torch.zeros(3)}],
            r"'layer\.bias' has shape \[3\], not \[20\]; 'layer\.weight' is missing",
        ),
    ],
)
def test_evidence_that_does_not_fit_is_refused(with_fisher: None, evidence: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        merge([model(1), model(2)], method="weighed", evidence=evidence)
