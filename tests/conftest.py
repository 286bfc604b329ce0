"""Fixtures shared by all tests: oracle data, one thread, no state outside temporary folders."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from tests.prefect_fixtures import prefect_server as prefect_server
from tests.prefect_fixtures import state as state

# The same examples on every run, and no deadline: a loaded machine is not a fault.
settings.register_profile("mergeline", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("mergeline")

ROOT = Path(__file__).resolve().parent.parent
ORACLE = Path(os.environ.get("MERGELINE_ORACLE", ROOT.parent / "shared" / "oracle"))


@pytest.fixture(scope="session")
def oracle() -> Callable[[str], Path]:
    """Folder of one set of expected results made with the authors' programs; skips where they are not at hand."""

    def folder(name: str) -> Path:
        path = ORACLE / name
        if not path.is_dir():
            pytest.skip(f"oracle data '{name}' not found in {ORACLE} (set MERGELINE_ORACLE)")
        return path

    return folder


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests run only where the command line asks for them."""
    if "slow" not in config.getoption("markexpr"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow; run it with -m slow"))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small tensors on few cores: one thread is fastest, and results do not depend on the machine."""
    import torch

    torch.set_num_threads(1)
