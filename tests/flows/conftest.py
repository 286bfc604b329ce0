"""The project's folder as working directory, with state of its own for each module of tests."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def project(tmp_path_factory, prefect_server):
    """The folder of the state, shared by the tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("state")
        patch.chdir(ROOT)
        patch.setenv("MERGELINE_STATE", str(folder))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / '.mlflow' / 'mlflow.db'}")
        yield folder
