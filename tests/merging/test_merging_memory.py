"""Memory does not grow with the model: tensors go from mapped files through a few buffers into a file."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import merging as benchmark
from mergeline.alignment.apply import AlignedReader
from mergeline.checkpoints.readers import open_checkpoint
from mergeline.checkpoints.writer import write_checkpoint
from mergeline.merging import registry
from mergeline.merging.engine import merge
from mergeline.symmetry.symmetry import Symmetry, parameter_layout
from mergeline.symmetry.units import Family

MB = 1000  # kB
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from /proc")


class Constant:
    """A checkpoint of any size that takes no memory: every entry is one number."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], value: float) -> None:
        self.specs = {name: (shape, torch.bfloat16) for name, shape in shapes.items()}
        self._memory = torch.full((1 << 20,), value, dtype=torch.bfloat16)

    def pieces(self, names: Sequence[str]) -> Iterator[tuple[str, int, Tensor]]:
        for name in names:
            size = torch.Size(self.specs[name][0]).numel()
            for start in range(0, size, 1 << 20):
                yield name, start, self._memory[: size - start]


class PeakMemory:
    """How far the anonymous memory of this process rises inside, in kB: what is mapped from files does not count."""

    def __enter__(self) -> "PeakMemory":
        self._before = self.peak = benchmark.anonymous_kilobytes()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watcher.join()

    @property
    def growth(self) -> int:
        return self.peak - self._before

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.peak = max(self.peak, benchmark.anonymous_kilobytes())


@pytest.mark.parametrize("shape", [(1, 50_000_000), (25_000, 2_000)], ids=["one row", "rows"])
@pytest.mark.parametrize("method", ["average", "task_arithmetic"])
def test_a_tensor_of_100_megabytes_is_merged_in_30(tmp_path: Path, method: str, shape: tuple[int, ...]) -> None:
    shapes = {"embedding": shape, "norm": (2_000,)}
    for number in range(3):
        write_checkpoint(tmp_path / str(number), Constant(shapes, float(number)))
    base, *models = [tmp_path / str(number) for number in range(3)]
    with PeakMemory() as memory:
        options = {"base": base} if registry.get(method).needs_base else {}
        manifest = write_checkpoint(tmp_path / "merged", merge(models, method=method, **options))  # type: ignore[arg-type]
    assert manifest.parameters == 50_002_000
    assert memory.growth < 30 * MB


def test_models_in_another_unit_order_are_merged_in_as_little(tmp_path: Path) -> None:
    units = {"hidden": Family("hidden", 25_000), "stream": Family("stream", 2_000)}
    symmetry = Symmetry(units, {"up": parameter_layout(["hidden", "stream"], ["out", "in"])})
    write_checkpoint(tmp_path / "one", Constant({"up": (25_000, 2_000)}, 1.0))
    reader = open_checkpoint(tmp_path / "one")
    views = [AlignedReader(reader, symmetry.random_alignment(seed), 0) for seed in range(3)]
    with PeakMemory() as memory:
        write_checkpoint(tmp_path / "merged", merge(views, method="average"))  # type: ignore[arg-type]
    assert memory.growth < 40 * MB


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("method", [name for name in benchmark.METHODS if name in registry.names()])
def test_language_models_of_2_gigabytes_are_merged_in_300_megabytes(big: Path, method: str) -> None:
    took = benchmark.measured(["merge", method], big)
    floor = benchmark.measured(["floor", "4" if registry.get(method).needs_base else "3"], big)
    assert took["anonymous"] <= 300
    factor, seconds = benchmark.TARGETS[method]
    assert took["cpu"] <= factor * floor["cpu"] + seconds


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("big")
    benchmark.measured(["build", "2"], folder)
    yield folder
    for file in folder.rglob("*.safetensors"):
        file.unlink()
