"""A merge cut into parts and written by several processes has the bytes of one process."""

import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mergeline.checkpoints.output import Layout, prepare, publish
from mergeline.checkpoints.writer import write_checkpoint
from mergeline.merging import registry
from mergeline.merging.engine import merge, method_statistics
from mergeline.merging.work import Range, split, write_part

StateDict = dict[str, Tensor]
SHAPES = {"embed": (50, 7), "layers.0.w": (3, 400), "layers.0.b": (5,), "norm": (), "none": (0, 3), "wide": (1, 900)}


def state_dict(seed: int) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()} | {
        "steps": torch.tensor([seed, 2])
    }


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    paths = [tmp_path_factory.mktemp("models") / f"{seed}.safetensors" for seed in range(4)]
    for seed, path in enumerate(paths):
        write_checkpoint(path, state_dict(seed), dtype=torch.bfloat16)
    return paths


def write(layout: Layout, part: list[Range], readers: list[Path], arguments: dict[str, Any]) -> None:
    """What a worker does; its process knows nothing but these arguments."""
    write_part(layout, merge(readers, chunk=100, **arguments), part)


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 64, 5000])
def test_parts_hold_every_entry_once_and_are_of_one_size(checkpoints: list[Path], parts: int) -> None:
    merged = merge(checkpoints, method="average")
    found = split(merged, parts)
    assert found == split(merge(checkpoints, method="average"), parts)
    sizes = [sum(stop - start for _, start, stop in part) for part in found]
    assert len(found) <= parts
    assert max(sizes) - min(sizes) <= 1
    counts = Counter((name, entry) for part in found for name, start, stop in part for entry in range(start, stop))
    assert counts == {(name, entry): 1 for name, (shape, _) in merged.specs.items() for entry in range(prod(shape))}


def test_a_tensor_that_a_method_sees_whole_is_in_one_part(
    checkpoints: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    @registry.method("whole", needs_base=False, whole_tensors=True)
    def kernel(models: Tensor) -> Tensor:
        """The mean."""
        return models.mean(dim=0)

    parts = split(merge(checkpoints, method="whole"), 9)
    counts = Counter(name for part in parts for name, _, _ in part)
    assert {counts[name] for name in ("embed", "wide", "norm")} == {1}


@pytest.mark.parametrize("method", ["average", "task_arithmetic", "pcb"])
@pytest.mark.parametrize("max_shard_size", [None, 1500])
def test_two_processes_write_the_bytes_of_one(
    tmp_path: Path, checkpoints: list[Path], method: str, max_shard_size: int | None, workers: ProcessPoolExecutor
) -> None:
    base, *models = checkpoints
    arguments: dict[str, Any] = {"method": method}
    if registry.get(method).needs_base:
        arguments["base"] = base
    expected = write_checkpoint(tmp_path / "one", merge(models, **arguments), max_shard_size=max_shard_size)

    arguments["statistics"] = method_statistics(models, **arguments)
    merged = merge(models, **arguments)
    layout = prepare(tmp_path / "many", merged.specs, max_shard_size=max_shard_size)
    jobs = [workers.submit(write, layout, part, models, arguments) for part in split(merged, 5)]
    for job in jobs:
        job.result()

    assert publish(layout) == expected
    for name in expected.files:
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@pytest.fixture(scope="module")
def workers() -> Any:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool
