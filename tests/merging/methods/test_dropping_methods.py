"""DARE, DELLA and breadcrumbs against dense implementations that know the same random numbers."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mergeline.errors import InputError
from mergeline.merging.engine import merge, method_statistics
from mergeline.merging.random_masks import uniforms

METHODS = ["dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties"]
SHAPE = (12, 31)


def vectors(count: int, *shape: int) -> Tensor:
    return torch.randn(count, *(shape or SHAPE), generator=torch.Generator().manual_seed(0))


def run(task_vectors: Tensor, method: str, **options: Any) -> Tensor:
    models = [{"w": vector.clone()} for vector in task_vectors]
    return dict(merge(models, base={"w": torch.zeros(task_vectors.shape[1:])}, method=method, **options))["w"]


def agreeing(kept: Tensor, weights: list[float], combine: str = "mean") -> Tensor:
    """Sign election written with masks: positive where the votes cancel."""
    column = torch.tensor(weights, dtype=torch.float64).view(-1, *[1] * (kept.dim() - 1))
    votes = (kept.double() * column).sum(dim=0)
    selected = torch.where(votes >= 0, kept > 0, kept < 0)
    total = (kept.double() * column * selected).sum(dim=0)
    return (total / (column * selected).sum(dim=0).clamp(min=1e-9) if combine == "mean" else total).float()


def dare(task_vectors: Tensor, keep_ratio: float, seed: int) -> Tensor:
    size = task_vectors[0].numel()
    # 24 bits of the 32 decide here: so equal but for entries within 2^-24 of the ratio
    drawn = torch.stack([torch.from_numpy(uniforms(seed, "w", i, 0, size)) for i in range(len(task_vectors))])
    return torch.where(drawn.view(task_vectors.shape) < keep_ratio, task_vectors / keep_ratio, 0)


WEIGHTS = [0.5, 1.0, 2.0]


@pytest.mark.parametrize("chunk", [1, 50, 1 << 18])
@pytest.mark.parametrize("seed", [0, 7])
def test_dare_drops_at_random_and_rescales(chunk: int, seed: int) -> None:
    kept = dare(vectors(3), 0.3, seed)
    options: dict[str, Any] = {"keep_ratio": 0.3, "seed": seed, "weights": WEIGHTS, "scale": 0.7, "chunk": chunk}
    linear = sum(w * row for w, row in zip(WEIGHTS, kept, strict=True))
    assert torch.allclose(run(vectors(3), "dare_linear", **options), 0.7 * linear, atol=1e-6)
    assert torch.allclose(run(vectors(3), "dare_ties", **options), 0.7 * agreeing(kept, WEIGHTS), atol=1e-6)
    summed = run(vectors(3), "dare_ties", combine="sum", **options)
    assert torch.allclose(summed, 0.7 * agreeing(kept, WEIGHTS, "sum"), atol=1e-6)


def magprune(task_vectors: Tensor, keep_ratio: float, spread: float, seed: int) -> Tensor:
    """Row by row with Python's stable sort."""
    kept = torch.zeros_like(task_vectors)
    for i, matrix in enumerate(task_vectors):
        rows = matrix.reshape(matrix.shape[0] if matrix.dim() > 1 else 1, -1)
        drawn = torch.from_numpy(uniforms(seed, "w", i, 0, matrix.numel())).view(rows.shape)
        for r, row in enumerate(rows):
            order = sorted(range(len(row)), key=lambda j: abs(float(row[j])))
            for rank, j in enumerate(order):
                share = rank / (len(row) - 1) if len(row) > 1 else 0.5
                chance = keep_ratio - spread + 2 * spread * share
                if drawn[r, j] < chance:
                    kept[i].view(rows.shape)[r, j] = row[j] / chance
    return kept


@pytest.mark.parametrize("shape", [SHAPE, (40,), (5, 2, 3, 3), (4, 1), ()])
def test_della_drops_small_entries_of_a_row_sooner(shape: tuple[int, ...]) -> None:
    task_vectors = vectors(3, *shape) if shape else torch.tensor([0.5, -1.0, 2.0])
    task_vectors = (4 * task_vectors).round() / 4  # equal magnitudes
    kept = magprune(task_vectors, 0.6, 0.3, 5)
    options: dict[str, Any] = {"keep_ratio": 0.6, "spread": 0.3, "seed": 5, "weights": WEIGHTS}
    linear = sum(w * row for w, row in zip(WEIGHTS, kept, strict=True))
    assert torch.allclose(run(task_vectors, "della_linear", **options), linear, atol=1e-5)
    assert torch.allclose(run(task_vectors, "della", **options), agreeing(kept, WEIGHTS), atol=1e-5)
    for chunk in (1, 32, 100):  # of whole rows at least
        assert torch.equal(run(task_vectors, "della", chunk=chunk, **options), run(task_vectors, "della", **options))


def test_della_ranks_a_large_matrix_in_parts() -> None:
    """More entries than are ranked at a time, in rows that do not divide that number."""
    task_vectors = vectors(1, 700, 501)
    kept = run(task_vectors, "della_linear", keep_ratio=0.5, spread=0.4)
    ranks = task_vectors[0].abs().argsort(dim=1).argsort(dim=1)
    for low in (0, 167, 334):  # the expected share of kept entries in each third of the ranks
        third = kept[(ranks >= low) & (ranks < low + 167)]
        chance = 0.1 + 0.8 * (low + 83) / 500
        assert abs(float((third != 0).float().mean()) - chance) < 5 * (0.25 / len(third)) ** 0.5
    assert abs(float(kept.mean() - task_vectors.mean())) < 0.01  # rescaled, so the expectation stays


def test_any_part_of_a_tensor_is_merged_by_della_to_the_same_bits() -> None:
    models = [{"w": vector} for vector in vectors(2)]
    whole = run(vectors(2), "della", seed=4).flatten()
    for start, stop in ((0, 5), (5, 31), (31, 62), (40, 372), (100, 101)):
        merged = merge(models, base={"w": torch.zeros(SHAPE)}, method="della", seed=4, chunk=50)
        pieces = [(first, piece.clone()) for _, first, piece in merged.pieces_of("w", start, stop)]
        assert [first for first, _ in pieces] == [
            start + sum(len(p) for _, p in pieces[:i]) for i in range(len(pieces))
        ]
        assert torch.equal(torch.cat([piece for _, piece in pieces]), whole[start:stop])


def test_without_spread_della_is_dare() -> None:
    for form, plain in (("della", "dare_ties"), ("della_linear", "dare_linear")):
        dropped = run(vectors(3), form, keep_ratio=0.5, spread=0.0, seed=3)
        assert torch.allclose(dropped, run(vectors(3), plain, keep_ratio=0.5, seed=3), atol=1e-6)


@pytest.mark.parametrize(("keep_ratio", "outlier_ratio"), [(0.1, 0.01), (0.5, 0.2), (0.9, 0.3), (1.0, 0.5), (0.3, 0.0)])
def test_breadcrumbs_keep_the_middle_of_the_magnitudes(keep_ratio: float, outlier_ratio: float) -> None:
    task_vectors, size = vectors(3), SHAPE[0] * SHAPE[1]
    kept = torch.zeros_like(task_vectors)
    for i, vector in enumerate(task_vectors):
        order = vector.flatten().abs().argsort()
        outliers = min(int(size * outlier_ratio), size - int(size * keep_ratio))
        middle = order[size - outliers - int(size * keep_ratio) : size - outliers]
        kept[i].view(-1)[middle] = vector.flatten()[middle]
    options: dict[str, Any] = {
        "keep_ratio": keep_ratio,
        "outlier_ratio": outlier_ratio,
        "weights": WEIGHTS,
        "chunk": 100,
    }
    linear = sum(w * row for w, row in zip(WEIGHTS, kept, strict=True))
    assert torch.allclose(run(task_vectors, "breadcrumbs", scale=1.0, **options), linear, atol=1e-6)
    assert torch.allclose(run(task_vectors, "breadcrumbs_ties", **options), agreeing(kept, WEIGHTS), atol=1e-6)


def test_breadcrumbs_keep_at_least_one_entry() -> None:
    merged = run(vectors(1), "breadcrumbs", keep_ratio=0.001, outlier_ratio=0.5, scale=1.0)
    assert int(merged.count_nonzero()) == 1


def test_breadcrumbs_without_outliers_and_with_votes_are_ties_but_for_its_one_more_entry() -> None:
    size = SHAPE[0] * SHAPE[1]
    task_vectors = vectors(3)
    ties = run(task_vectors, "ties", keep_ratio=75 / size)
    assert torch.equal(run(task_vectors, "breadcrumbs_ties", keep_ratio=76.5 / size, outlier_ratio=0.0), ties)


def test_granularity_decides_what_an_outlier_is() -> None:
    small, large = torch.arange(1.0, 11), torch.arange(100.0, 1100, 100)
    model, base = {"a": small, "b": large}, {"a": torch.zeros(10), "b": torch.zeros(10)}
    options: dict[str, Any] = {"method": "breadcrumbs", "keep_ratio": 0.5, "outlier_ratio": 0.1, "scale": 1.0}
    whole = dict(merge([model], base=base, **options))
    each = dict(merge([model], base=base, granularity="tensor", **options))
    assert (int(whole["a"].count_nonzero()), int(whole["b"].count_nonzero())) == (2, 8)
    assert (int(each["a"].count_nonzero()), int(each["b"].count_nonzero())) == (5, 5)


@pytest.mark.parametrize("method", METHODS)
def test_zero_task_vectors_merge_to_nothing(method: str) -> None:
    assert not run(torch.zeros(3, *SHAPE), method).any()


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_keeping_everything_of_one_model_gives_it_back(method: str) -> None:
    assert torch.equal(run(vectors(1), method, keep_ratio=1.0), vectors(1)[0])


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_another_seed_another_mask_and_models_do_not_share_one(method: str) -> None:
    first, second = (run(vectors(1), method, seed=seed) != 0 for seed in (0, 1))
    assert (first != second).any()
    twins = torch.ones(2, *SHAPE)
    assert len(run(twins, "dare_linear").unique()) == 3  # neither, one or both


def test_wrong_options_are_one_sentence() -> None:
    task_vectors = vectors(2)
    for spread in (0.3, 0.49):
        with pytest.raises(InputError, match=r"della: keep_ratio 0\.2 .* lower the spread"):
            run(task_vectors, "della", keep_ratio=0.2, spread=spread)
    for method in ("dare_ties", "della", "breadcrumbs_ties"):
        with pytest.raises(InputError, match=f"{method}: weights must be 2 numbers >= 0"):
            run(task_vectors, method, weights=[1.0, -1.0])
    for method in ("dare_linear", "della_linear", "breadcrumbs"):
        run(task_vectors, method, weights=[1.0, -1.0])
        with pytest.raises(InputError, match=f"{method}: weights must be 2 numbers"):
            run(task_vectors, method, weights=[1.0])


def test_statistics_of_breadcrumbs_are_two_bounds_per_model() -> None:
    models = [{"w": torch.arange(1.0, 11)}, {"w": -torch.arange(10.0, 110, 10)}]
    found = method_statistics(
        models, base={"w": torch.zeros(10)}, method="breadcrumbs", keep_ratio=0.5, outlier_ratio=0.2
    )
    assert found and found["model"].items() >= {"low": [4.0, 40.0], "high": [8.0, 80.0]}.items()


def test_running_statistics_are_averaged_whatever_the_weights_of_task_vectors() -> None:
    models = [{"w": torch.ones(2), "bn.running_mean": torch.full((2,), value)} for value in (1.0, 3.0)]
    for method, weights in (("task_arithmetic", [1.0, -1.0]), ("dare_ties", [1.0, 0.0])):
        merged = dict(merge(models, base=models[0], method=method, weights=weights))
        assert merged["bn.running_mean"].tolist() == [2, 2]
    assert dict(merge(models, method="average", weights=[3.0, 1.0]))["bn.running_mean"].tolist() == [1.5, 1.5]
