"""What the engine does with tensors: values, bases, buffers, dtypes, and what it reads."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergeline.balancing.pcb import pcb_merge
from mergeline.checkpoints.readers import TensorReader, open_checkpoint
from mergeline.checkpoints.writer import write_checkpoint
from mergeline.errors import InputError
from mergeline.merging import registry
from mergeline.merging.engine import merge, method_statistics, pattern_matches
from mergeline.merging.groups import layer_of
from mergeline.merging.patterns import PatternMatch

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


def test_a_name_that_a_file_only_notes_is_noted_again_where_all_models_tie_it(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.safetensors" for index in range(3)]
    for path, state in zip(paths, [BASE, *MODELS], strict=False):
        save_file(state, path, metadata={"0.alias": "b10", "format": "pt"})
    merged = dict(merge(paths[1:], base=paths[0], method="task_arithmetic"))
    assert merged["0.alias"].data_ptr() == merged["b10"].data_ptr()
    write_checkpoint(tmp_path / "merged", merge(paths[1:], base=paths[0], method="task_arithmetic"))
    assert sorted(load_file(tmp_path / "merged" / "model.safetensors")) == sorted(SHAPES)
    assert_equal(dict(open_checkpoint(tmp_path / "merged")), merged)

    untied = MODELS[2] | {"0.alias": MODELS[2]["b10"] + 1}
    write_checkpoint(tmp_path / "full", merge([paths[1], untied], base=paths[0], method="task_arithmetic"))
    assert len(load_file(tmp_path / "full" / "model.safetensors")) == len(SHAPES) + 1


# -- options by pattern, groups ----------------------------------------------------------------------------------------

BLOCKS = {f"layers.{i}.{part}.weight": (6, 8) for i in range(2) for part in ("mlp", "attn")} | {"head.bias": (9,)}
BLOCK_BASE = tensors(0, **BLOCKS)
BLOCK_MODELS = [
    {name: BLOCK_BASE[name] + 0.1 * noise for name, noise in tensors(seed, **BLOCKS).items()} for seed in (1, 2, 3)
]


def merged_blocks(**options: object) -> StateDict:
    return dict(merge(BLOCK_MODELS, base=BLOCK_BASE, **options))  # type: ignore[arg-type]


def test_an_option_by_pattern_holds_for_the_tensors_that_match() -> None:
    merged = merged_blocks(method="task_arithmetic", scale=0.5, options_by_pattern={"*.mlp.*": {"scale": 0.0}})
    half = merged_blocks(method="task_arithmetic", scale=0.5)
    for name, tensor in merged.items():
        assert torch.equal(tensor, BLOCK_BASE[name] if ".mlp." in name else half[name]), name


def test_of_two_patterns_that_set_one_option_the_later_wins() -> None:
    patterns = {"*": {"scale": 0.0}, "*.mlp.*": {"scale": 0.5}, "layers.1.*": {"scale": 1.0}}
    merged = merged_blocks(method="task_arithmetic", options_by_pattern=patterns)
    scales = [("head.bias", 0.0), ("layers.0.attn.weight", 0.0), ("layers.0.mlp.weight", 0.5)]
    for name, scale in [*scales, ("layers.1.attn.weight", 1.0), ("layers.1.mlp.weight", 1.0)]:
        assert torch.equal(merged[name], merged_blocks(method="task_arithmetic", scale=scale)[name]), name


def test_tensors_with_other_options_for_the_statistics_are_a_group_of_their_own() -> None:
    """Their statistics are those of a model that holds nothing else."""
    patterns = {"*.mlp.*": {"keep_ratio": 0.3, "scale": 2.0}, "head.*": {"scale": 3.0}, "*.attn.*": {"keep_ratio": 0.1}}
    statistics = method_statistics(BLOCK_MODELS, base=BLOCK_BASE, options_by_pattern=patterns)
    assert list(statistics or {}) == ["model", "model (keep_ratio=0.3)"]
    merged = merged_blocks(options_by_pattern=patterns, statistics=statistics)
    assert_equal(merged, merged_blocks(options_by_pattern=patterns))
    for inside, keep_ratio in ((True, 0.3), (False, 0.1)):
        names = [name for name in BLOCKS if (".mlp." in name) == inside]
        part = [{name: model[name] for name in names} for model in [BLOCK_BASE, *BLOCK_MODELS]]
        for name, tensor in merge(part[1:], base=part[0], keep_ratio=keep_ratio, scale=1.0):
            moved = (merged[name] - BLOCK_BASE[name]) / (2 if inside else 3 if name == "head.bias" else 1)
            assert torch.allclose(moved, tensor - BLOCK_BASE[name], atol=1e-6), name


def test_the_pre_flight_tells_what_each_pattern_reaches() -> None:
    patterns = {"*.mlp.*": {"scale": 0.1}, "*": {"scale": 0.2}}
    rows = pattern_matches(BLOCK_MODELS, method="task_arithmetic", options_by_pattern=patterns)
    assert rows == [PatternMatch("*.mlp.*", {"scale": 0.1}, 2, 96), PatternMatch("*", {"scale": 0.2}, 5, 201)]


def test_the_group_in_which_statistics_fail_is_named() -> None:
    values = (0.0, 3e38, 3e38)  # their sum is too large for float32
    huge = [{**m, "head.bias": torch.full((9,), v)} for m, v in zip(BLOCK_MODELS, values, strict=True)]
    base = {**BLOCK_BASE, "head.bias": torch.zeros(9)}
    with pytest.raises(InputError, match=r"^head: PCB: the task vectors are too large"):
        dict(merge(huge, base=base, method="pcb", keep_ratio=0.5, granularity="layer"))


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.mlp.up.weight", "model.layers.3"),
        ("layer1.0.bn.bias", "layer1.0"),
        ("blocks.0.attn.heads.1.weight", "blocks.0"),
        ("conv1.weight", "conv1"),
        ("head.bias", "head"),
        ("temperature", "temperature"),
        ("0.weight", "0"),
    ],
)
def test_a_layer_is_a_name_up_to_its_first_number(name: str, layer: str) -> None:
    assert layer_of(name) == layer


# -- what kernels are given --------------------------------------------------------------------------------------------


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods registered in a test are gone after it."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


def test_a_kernel_is_told_which_entries_it_sees(scratch: None) -> None:
    seen: list[tuple[registry.Piece, int]] = []

    @registry.method("located", needs_base=False)
    def kernel(models: Tensor, *, where: registry.Piece) -> Tensor:
        """The entries' own index."""
        seen.append((where, models.shape[1]))
        return torch.arange(where.start, where.start + models.shape[1], dtype=torch.float32)

    merged = dict(merge([{"a": torch.zeros(5, 4), "s": torch.zeros(())}], method="located", chunk=11))
    assert torch.equal(merged["a"], torch.arange(20.0).view(5, 4))
    expected = [(registry.Piece("a", start, (5, 4)), 8 if start < 16 else 4) for start in (0, 8, 16)]
    assert seen == [*expected, (registry.Piece("s", 0, ()), 1)]


def test_a_kernel_of_whole_tensors_gets_their_shape_and_gram_matrices(scratch: None) -> None:
    @registry.method("matrices", needs_base=True, whole_tensors=True, evidence="gram", models=(2, 2))
    def kernel(task_vectors: Tensor, *, evidence: Tensor | None) -> Tensor:
        """X^T X applied to the first task vector."""
        return task_vectors[0] if evidence is None else task_vectors[0] @ evidence[1]

    base = {"w": torch.ones(2, 3), "b": torch.ones(2)}
    models = [{"w": torch.full((2, 3), 2.0), "b": torch.full((2,), 4.0)}] * 2
    evidence = [{"w": torch.zeros(3, 3)}, {"w": torch.diag(torch.tensor([1.0, 2.0, 3.0]))}]
    merged = dict(merge(models, base=base, method="matrices", evidence=evidence, chunk=2))
    assert merged["w"].tolist() == [[2.0, 3.0, 4.0]] * 2
    assert merged["b"].tolist() == [4.0, 4.0]


def test_a_wide_row_is_read_in_parts(tmp_path: Path) -> None:
    states = [{"w": torch.randn(1, 1000)} for _ in range(2)]
    paths = [tmp_path / f"{index}.safetensors" for index in range(2)]
    for path, state in zip(paths, states, strict=True):
        save_file(state, path)
    pieces = [(start, len(piece)) for _, start, piece in merge(paths, method="average", chunk=300).pieces()]
    assert pieces == [(0, 300), (300, 300), (600, 300), (900, 100)]
    assert_equal(dict(merge(paths, method="average", chunk=300)), dict(merge(states, method="average")))


@pytest.mark.parametrize("granularity", ["layer", "tensor"])
@pytest.mark.parametrize("variant", ["reference", "pairwise", "paper"])
def test_small_groups_do_not_fail_a_merge(granularity, variant):
    """A bias of three numbers keeps its strongest entry, where the whole model would refuse the ratio."""
    base = {"layer.weight": torch.zeros(40, 10), "layer.bias": torch.zeros(3), "scalar": torch.zeros(())}
    generator = torch.Generator().manual_seed(0)
    models = [{name: torch.randn(x.shape, generator=generator) for name, x in base.items()} for _ in range(2)]
    options = {"variant": variant, "keep_ratio": 0.05, "granularity": granularity}
    merged = dict(merge(models, base=base, method="pcb", **options))
    assert merged["layer.bias"].count_nonzero() in (1, 2) if granularity == "tensor" else True
    assert 0 < merged["layer.weight"].count_nonzero() <= 2 * 0.05 * 400 + 4


@pytest.mark.parametrize(("granularity", "names"), [("layer", ("model.w", "head.w")), ("tensor", ("model", "head"))])
def test_a_group_called_model_is_not_the_whole_model(granularity, names):
    small, large = names
    generator = torch.Generator().manual_seed(0)
    models = [{small: torch.randn(5, generator=generator), large: torch.randn(50, generator=generator)} for _ in "ab"]
    base = {small: torch.zeros(5), large: torch.zeros(50)}
    merged = dict(merge(models, base=base, method="pcb", keep_ratio=0.1, granularity=granularity))
    assert merged[small].count_nonzero() > 0


def test_ties_that_all_have_hold_though_one_has_more():
    def state(*, all_tied: bool):
        shared, own = torch.randn(3), torch.randn(3)
        return {"a": shared if all_tied else own, "b": shared, "c": shared}

    merged = dict(merge([state(all_tied=True), state(all_tied=False)], method="average"))
    assert merged["b"].data_ptr() == merged["c"].data_ptr() != merged["a"].data_ptr()


def test_vocabularies_of_different_length_are_told_as_such():
    models = [{"lm_head.weight": torch.zeros(rows, 4), "body": torch.zeros(2)} for rows in (7, 6)]
    with pytest.raises(InputError, match=r"the vocabularies differ: tensor 'lm_head.weight' has rows: 7 in"):
        merge(models, method="average")
