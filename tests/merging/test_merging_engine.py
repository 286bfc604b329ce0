"""What the engine does with tensors: values, bases, buffers, dtypes, and what it reads."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mergeline.balancing.pcb import pcb_merge
from mergeline.checkpoints.readers import TensorReader, open_checkpoint
from mergeline.merging.engine import merge, method_statistics

StateDict = dict[str, Tensor]


def tensors(seed: int, **shapes: tuple[int, ...]) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


class WatchedReader(TensorReader):
    """Counts the entries that are read of each tensor, and remembers the largest single read."""

    def __init__(self, state: StateDict) -> None:
        super().__init__(state)
        self.entries: Counter[str] = Counter()
        self.largest = 0

    def read_slice(self, name: str, start: int, stop: int) -> Tensor:
        rows = super().read(name)[start:stop]
        self.entries[name] += rows.numel()
        self.largest = max(self.largest, rows.numel())
        return rows


SHAPES = {"b10": (7, 5), "b2": (40,), "a": (3, 4, 5), "c": ()}
BASE = tensors(0, **SHAPES)
MODELS = [{name: BASE[name] + 0.1 * noise for name, noise in tensors(seed, **SHAPES).items()} for seed in (1, 2, 3)]


def test_average_is_the_mean_and_weights_divide_by_their_sum() -> None:
    models = [{"w": torch.tensor([1.0, 8.0])}, {"w": torch.tensor([3.0, 0.0])}]
    assert dict(merge(models, method="average"))["w"].tolist() == [2.0, 4.0]
    assert dict(merge(models, method="average", weights=[3, 1]))["w"].tolist() == [1.5, 6.0]


def test_task_arithmetic_adds_the_scaled_sum() -> None:
    base = {"w": torch.tensor([1.0, 1.0])}
    models = [{"w": torch.tensor([2.0, 1.0])}, {"w": torch.tensor([5.0, -1.0])}]
    assert dict(merge(models, base=base, method="task_arithmetic", scale=0.5))["w"].tolist() == [3.5, 0.0]
    default = dict(merge(models, base=base, method="task_arithmetic"))["w"]
    assert default.tolist() == pytest.approx([2.5, 0.4])


@pytest.mark.parametrize("options", [{}, {"variant": "pairwise"}, {"variant": "vision", "clip_ratio": 0.05}])
def test_pcb_over_a_model_is_pcb_over_its_tensors_in_the_order_of_their_names(options: dict[str, object]) -> None:
    names = sorted(SHAPES)
    flat = torch.stack([torch.cat([(model[name] - BASE[name]).flatten() for name in names]) for model in MODELS])
    scales = [0.5, 1.0, 2.0]
    expected = pcb_merge(flat, 0.2, scales=scales, **options).merged  # type: ignore[arg-type]

    merged = dict(merge(MODELS, base=BASE, method="pcb", keep_ratio=0.2, scales=scales, scale=0.5, chunk=9, **options))

    target = torch.cat([BASE[name].flatten() for name in names]) + 0.5 * expected
    assert torch.equal(torch.cat([merged[name].flatten() for name in names]), target)


def test_pcb_is_the_default_method_and_keeps_a_tenth() -> None:
    assert_equal(dict(merge(MODELS, base=BASE)), dict(merge(MODELS, base=BASE, method="pcb", keep_ratio=0.1)))


def assert_equal(left: StateDict, right: StateDict) -> None:
    assert list(left) == list(right)
    for name in left:
        assert torch.equal(left[name], right[name]), name


def test_running_statistics_are_averaged_and_take_no_part_in_the_competition() -> None:
    extra = [{"bn.running_mean": torch.tensor([1e6 * i]), "bn.running_var": torch.tensor([1.0 + i])} for i in range(3)]
    models = [model | more for model, more in zip(MODELS, extra, strict=True)]
    base = BASE | {"bn.running_mean": torch.tensor([-7.0]), "bn.running_var": torch.tensor([7.0])}

    merged = dict(merge(models, base=base))

    assert merged.pop("bn.running_mean").tolist() == [1e6]
    assert merged.pop("bn.running_var").tolist() == [2.0]
    assert_equal(merged, dict(merge(MODELS, base=BASE)))
    assert method_statistics(models, base=base) == method_statistics(MODELS, base=BASE)


def test_average_only_patterns_are_the_callers_choice() -> None:
    models = [{"w": torch.tensor([1.0]), "running_mean": torch.tensor([1.0])} for _ in range(2)]
    base = {"w": torch.tensor([0.0]), "running_mean": torch.tensor([0.0])}
    merged = dict(merge(models, base=base, method="task_arithmetic", scale=1.0, average_only=["w*"]))
    assert merged["w"].item() == 1.0
    assert merged["running_mean"].item() == 2.0


def test_weights_of_the_average_apply_to_running_statistics_too() -> None:
    models = [{"x.running_mean": torch.tensor([1.0])}, {"x.running_mean": torch.tensor([3.0])}]
    assert dict(merge(models, method="average", weights=[1.0, 0.0]))["x.running_mean"].item() == 1.0


def test_integers_flags_and_counters_are_those_of_the_first_model() -> None:
    models = [
        {"ids": torch.tensor([i, 2]), "on": torch.tensor(i == 0), "bn.num_batches_tracked": torch.tensor(float(i))}
        for i in range(2)
    ]
    merged = dict(merge(models, base=models[1], out_dtype=torch.float16))
    assert merged["ids"].tolist() == [0, 2]
    assert merged["on"].item() is True
    assert merged["bn.num_batches_tracked"].item() == 0.0
    assert merged["ids"].dtype == torch.int64


def test_the_result_lies_on_the_mean_of_the_distinct_bases_or_on_the_first() -> None:
    bases = [{"w": torch.tensor([float(value)])} for value in (0, 3)]
    models = [{"w": bases[i]["w"] + 1.0} for i in (0, 1, 1)]
    family = [bases[0], bases[1], bases[1]]

    def merged(**onto: str) -> float:
        result = dict(merge(models, base=family, method="task_arithmetic", scale=1.0, **onto))  # type: ignore[arg-type]
        return result["w"].item()

    assert merged() == merged(onto="mean") == 1.5 + 3.0  # two distinct bases, although three are listed
    assert merged(onto="first") == 0.0 + 3.0


def test_readers_state_dicts_and_paths_may_be_mixed(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.safetensors" for index in range(3)]
    for path, state in zip(paths, [BASE, *MODELS[:2]], strict=True):
        save_file(state, path)
    mixed = merge([open_checkpoint(paths[1]), str(paths[2]), MODELS[2]], base=[paths[0], str(paths[0]), paths[0]])
    assert_equal(dict(mixed), dict(merge(MODELS, base=BASE)))


def test_a_base_that_models_share_is_read_once() -> None:
    base, models = WatchedReader(BASE), [WatchedReader(model) for model in MODELS]
    dict(merge(models, base=[base, base, base], method="task_arithmetic"))
    assert base.entries == models[0].entries == {name: BASE[name].numel() for name in ("b10", "b2", "a")}


def test_the_base_is_not_read_by_methods_that_need_none() -> None:
    base = WatchedReader(BASE)
    dict(merge(MODELS, base=base, method="average"))
    assert not base.entries


def test_no_read_is_larger_than_the_chunk() -> None:
    models = [WatchedReader({"w": torch.randn(100, 8)}) for _ in range(2)]
    dict(merge(models, base=WatchedReader({"w": torch.zeros(100, 8)}), chunk=50))
    assert models[0].largest == 48  # six rows of eight


def test_given_statistics_save_the_passes_that_gather_them() -> None:
    statistics = method_statistics(MODELS, base=BASE, keep_ratio=0.3)
    models = [WatchedReader(model) for model in MODELS]
    dict(merge(models, base=BASE, keep_ratio=0.3, statistics=statistics))
    assert models[0].entries["b2"] == 40


def test_statistics_ignore_the_options_that_only_the_merge_uses() -> None:
    assert method_statistics(MODELS, base=BASE, scale=0.5) == method_statistics(MODELS, base=BASE, scales=[1, 2, 3])


def test_a_model_of_integers_only_has_no_statistics() -> None:
    models = [{"ids": torch.tensor([1, 2])}, {"ids": torch.tensor([3, 4])}]
    assert method_statistics(models, base=models[0]) is None
    assert dict(merge(models, base=models[0]))["ids"].tolist() == [1, 2]


def test_the_output_is_rounded_once_to_the_dtype_asked_for() -> None:
    wide = dict(merge(MODELS, base=BASE))
    narrow = dict(merge(MODELS, base=BASE, out_dtype=torch.bfloat16))
    assert_equal(narrow, {name: tensor.bfloat16() for name, tensor in wide.items()})


def test_tensors_come_one_at_a_time() -> None:
    models = [WatchedReader(model) for model in MODELS]
    iterator = merge(models, method="average")
    assert not models[0].entries
    assert next(iterator)[0] == "a"
    assert list(models[0].entries) == ["a"]


def test_parameters_that_require_gradients_are_merged_as_data() -> None:
    module = torch.nn.Linear(30, 4)
    merged = dict(merge([dict(module.named_parameters())] * 2, method="average"))
    assert not merged["weight"].requires_grad
    assert torch.equal(merged["weight"], module.weight)
