"""One MLflow server for all tests of this folder: on PostgreSQL where that is installed, else on SQLite."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.registry.servers import find_postgres, mlflow, postgres

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="package")
def database(tmp_path_factory):
    """The address of a database for a server."""
    binaries = find_postgres()
    with ExitStack() as stack:
        file = tmp_path_factory.mktemp("database") / "mlflow.db"
        yield stack.enter_context(postgres(binaries)) if binaries else f"sqlite:///{file}"


@pytest.fixture(scope="package")
def server(database, tmp_path_factory):
    """The address of an MLflow server that keeps artifacts, too."""
    artifacts = tmp_path_factory.mktemp("artifacts")
    arguments = ["--backend-store-uri", database, "--artifacts-destination", str(artifacts), "--workers", "1"]
    with mlflow("server", *arguments) as address:
        yield address


@pytest.fixture(scope="package")
def project(server, tmp_path_factory, prefect_server):
    """The project's folder as working directory, with state of its own and the server to record in."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("state")
        patch.chdir(ROOT)
        patch.setenv("MERGELINE_STATE", str(folder))
        patch.setenv("MLFLOW_TRACKING_URI", server)
        yield folder
