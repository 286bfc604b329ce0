"""TIES gives what the authors' program gives, in every form of theirs; average and sum too."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mergeline.errors import InputError
from mergeline.merging.engine import merge, method_statistics

CASES = ["n2_d1000", "n3_d2000_sparse_sat", "n3_d3000", "n8_d1200_tiny", "n8_d2000"]


def load(folder: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """Task vectors [n, d] and the authors' results [d] by name; sparse ones lie as flat positions and values."""
    manifest = json.loads((folder / "manifest.json").read_text())

    def dense(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
        if name in tensors:
            return tensors[name]
        full = torch.zeros(shape).flatten()
        full[tensors[f"{name}.idx"].long()] = tensors[f"{name}.val"]
        return full.view(shape)

    baselines = load_file(folder / "baselines.safetensors")
    names = sorted({name.removesuffix(".idx").removesuffix(".val") for name in baselines})
    vectors = dense(load_file(folder / "inputs.safetensors"), "task_vectors", (manifest["n"], manifest["d"]))
    return vectors, {name: dense(baselines, name, (manifest["d"],)) for name in names}


def run(vectors: Tensor, method: str = "ties", **options: Any) -> Tensor:
    """The merged task vector of n task vectors, cut into two tensors."""
    half = vectors.shape[1] // 2
    models = [{"a": row[:half].clone(), "b": row[half:].clone()} for row in vectors]
    base = {name: torch.zeros_like(tensor) for name, tensor in models[0].items()}
    merged = dict(merge(models, base=None if method == "average" else base, method=method, **options))
    return torch.cat([merged["a"], merged["b"]])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chunk", [97, 1 << 18])
def test_ties_average_and_sum_agree_with_the_authors_programs(oracle, case: str, chunk: int) -> None:
    vectors, baselines = load(oracle("pcb") / case)
    assert {"mean", "sum", "ties_top20_mass_dis-mean", "ties_top10_mass_dis-mean"} <= set(baselines)
    for name, expected in baselines.items():
        if name == "mean":
            merged = run(vectors, "average", chunk=chunk)
        elif name == "sum":
            merged = run(vectors, "task_arithmetic", scale=1.0, chunk=chunk)
        else:
            _, top, elect, combine = name.split("_")
            options = {"keep_ratio": int(top.removeprefix("top")) / 100, "combine": combine.removeprefix("dis-")}
            merged = run(vectors, elect=elect, chunk=chunk, **options)
        assert torch.allclose(merged, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max())), name


def by_hand(vectors: Tensor, keep_ratio: float, weights: list[float]) -> Tensor:
    """Entry by entry, as the paper reads."""
    n, d = vectors.shape
    kept = torch.zeros_like(vectors)
    for i in range(n):
        smallest = vectors[i].abs().sort().values[d - int(d * keep_ratio) - 1]
        kept[i] = torch.where(vectors[i].abs() >= smallest, vectors[i], 0)
    votes = [sum(weights[i] * float(kept[i, j]) for i in range(n)) for j in range(d)]
    majority = sum((vote > 0) - (vote < 0) for vote in votes)
    merged = []
    for j, vote in enumerate(votes):
        sign = 1 if (vote or majority) > 0 else -1
        agreeing = [(weights[i], float(kept[i, j])) for i in range(n) if sign * kept[i, j] > 0]
        merged.append(sum(w * x for w, x in agreeing) / (sum(w for w, _ in agreeing) or 1))
    return torch.tensor(merged)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 0.25]])
@pytest.mark.parametrize("keep_ratio", [0.01, 0.3, 0.9])
def test_ties_is_the_papers_rule_entry_by_entry(keep_ratio: float, weights: list[float] | None) -> None:
    vectors = torch.randint(-4, 5, (4, 301), generator=torch.Generator().manual_seed(0)).float()  # ties and zero sums
    merged = run(vectors, keep_ratio=keep_ratio, weights=weights, scale=2.0)
    assert torch.allclose(merged, 2 * by_hand(vectors, keep_ratio, weights or [1.0] * 4), rtol=1e-6)


def test_all_entries_that_equal_the_smallest_kept_are_kept() -> None:
    vectors = torch.tensor([[3.0, -1, 1, 1, 0.5, 0, 0, 0, 0, 0]])
    assert run(vectors, keep_ratio=0.2).tolist() == [3, -1, 1, 1, 0, 0, 0, 0, 0, 0]


def test_keep_ratio_one_keeps_everything_and_a_single_model_is_itself() -> None:
    vectors = torch.randn(1, 50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(run(vectors, keep_ratio=1.0), vectors[0])


@pytest.mark.parametrize(("lead", "expected"), [(1.0, 2.0), (-1.0, -2.0), (0.0, -2.0)])
def test_where_votes_cancel_the_majority_of_all_entries_decides_and_none_means_negative(
    lead: float, expected: float
) -> None:
    vectors = torch.tensor([[2.0, lead, 0, 0], [-2.0, lead, 0, 0]])
    assert run(vectors, keep_ratio=1.0)[0] == expected


def test_zero_task_vectors_merge_to_nothing_in_every_form() -> None:
    for elect in ("mass", "normmass", "normfrac", "none"):
        for combine in ("mean", "sum", "max"):
            assert not run(torch.zeros(3, 20), elect=elect, combine=combine).any()


def test_signs_are_elected_by_shares_of_the_norm_where_that_is_asked() -> None:
    """A small model outvotes a large one only where norms do not count."""
    vectors = torch.tensor([[100.0, 100, 100, 100], [-1, 0, 0, 0]])
    assert run(vectors, keep_ratio=1.0)[0] == 100
    for elect in ("normmass", "normfrac"):
        assert run(vectors, keep_ratio=1.0, elect=elect)[0] == -1


def test_the_statistics_are_one_trim_per_model_and_the_majority() -> None:
    vectors = [{"w": torch.tensor([1.0, -2, 3, 4])}, {"w": torch.tensor([1.0, 2, 3, -8])}]
    found = method_statistics(vectors, base={"w": torch.zeros(4)}, method="ties", keep_ratio=0.5)
    made_of = {"method": "ties", "models": 2, "entries": 4, "keep_ratio": 0.5, "elect": "mass", "weights": None}
    assert found == {"model": {"of": made_of, "trims": [2.0, 2.0], "norms": [], "majority": 0}}


def test_wrong_options_are_one_sentence() -> None:
    vectors = torch.ones(2, 4)
    for weights in ([1.0], [1.0, -1.0], [0.0, 0.0]):
        with pytest.raises(InputError, match="ties: weights must be 2 numbers >= 0, not all zero"):
            run(vectors, weights=weights)
    with pytest.raises(InputError, match="option 'elect' is 'mas'"):
        run(vectors, elect="mas")
    with pytest.raises(InputError, match="option 'keep_ratio'"):
        run(vectors, keep_ratio=0.0)
