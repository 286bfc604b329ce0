"""Every benchmark can be started: nothing it imports has moved."""

from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = sorted(path.stem for path in (Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_has_a_beginning_and_can_be_imported(name: str) -> None:
    module = import_module(f"benchmarks.{name}")
    assert module.__doc__
    assert name == "timing" or callable(module.main)
