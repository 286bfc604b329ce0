"""One Prefect server for the whole session, and state that never touches the checkout."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_session_state = tempfile.TemporaryDirectory(prefix="mergeline-tests-")  # removed when the process ends
os.environ["MERGELINE_STATE"] = _session_state.name
for variable in ("MERGELINE_ROOT", "MERGELINE_FRESH", "MLFLOW_TRACKING_URI", "PREFECT_HOME", "PREFECT_API_URL"):
    os.environ.pop(variable, None)

import tasks  # noqa: E402, F401  its settings come before the first import of Prefect


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A real server on a temporary database; it takes 15 seconds to start, so there is one."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=None):
        yield


def forget_sources() -> None:
    """What a new process starts with: no module's source has been read yet."""
    from tasks import code_version as versions

    for cached in (versions.code_version, versions._read, versions._file, versions._top_level, versions._home):
        cached.cache_clear()
    versions.installed.cache_clear()


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for everything that a test stores, records, locks and tracks."""
    folder = tmp_path / "state"
    folder.mkdir()
    monkeypatch.setenv("MERGELINE_STATE", str(folder))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / '.mlflow' / 'mlflow.db'}")
    return folder
