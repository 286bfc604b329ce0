"""A Prefect server and a worker, started by the commands of compose.yaml, with secrets planted around them."""

import base64
import subprocess
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.checkpoints.fileserver import FileServer
from tests.operations import compose, hook
from tests.operations.compose import ROOT
from tests.test_readme import free_port

PASSWORD, LITERAL = "planted-pass/word+1", "literal-planted-password"
OF_MLFLOW = "planted-password-of-mlflow"
PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "planted/aws+secret0123456789",
    "HF_TOKEN": "hf_plantedtokenplantedtoken",
    "ROBOT_PASSWORD": "planted-pass%2Fword%2B1",
}
FACTORY = '''"""A user's architecture, which fails where it is told to, and says too much."""
import os

from mergeline.models.resnet import resnet as _resnet


def resnet(failing=False, **kwargs):
    if failing:
        raise RuntimeError(f"cannot log in with {os.environ['HF_TOKEN']} at https://me:{os.environ['HF_TOKEN']}@hub")
    return _resnet(**kwargs)
'''


@dataclass
class Operations:
    """Where everything is. secrets: what must not be found anywhere in `folder`, where all is kept.

    given: the environment of the worker.
    """

    folder: Path
    api: str
    project: Path
    hook: hook.Hook
    files: FileServer
    secrets: list[str]
    logs: dict[str, Path]
    worker: subprocess.Popen[bytes]
    given: dict[str, str]

    def client(self):
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(self.api)

    def start(self, deployment: str, **parameters: Any) -> Any:
        """Ask for a run of a deployment, wait for its end, return it."""
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            run = client.create_flow_run_from_deployment(found.id, parameters=parameters)
            return self.finished(client, run.id)

    def finished(self, client: Any, run: Any) -> Any:
        while not (found := client.read_flow_run(run)).state.is_final():
            self.look_again()
        return found

    def look_again(self) -> None:
        """A moment later, as long as the worker lives."""
        with suppress(subprocess.TimeoutExpired):
            self.worker.wait(0.3)
            pytest.fail(self.logs["worker"].read_text())


@pytest.fixture(scope="module")
def operations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("operations")
    project = tmp_path_factory.mktemp("project")  # its plan may hold what nothing else may
    kept = folder / "state"
    kept.mkdir()
    logs = {name: folder / f"{name}.log" for name in ("server", "worker")}
    with ExitStack() as stack:
        told = stack.enter_context(hook.serving())
        files = stack.enter_context(FileServer((ROOT / "data/zoo/a-clean-13569.safetensors").read_bytes()))
        (project / "data").symlink_to(ROOT / "data")
        (project / "planted_factory.py").write_text(FACTORY)
        _write_plan(project / "params.yaml", files, folder / "published")
        port = free_port()
        server = compose.environment("prefect", {}, {}) | {
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder}/prefect.db",
            "MERGELINE_STATE": str(kept),
        }
        process = stack.enter_context(compose.running("prefect", server, logs["server"]))
        api = f"http://127.0.0.1:{port}/api"
        compose.wait_for(f"{api}/health", process, logs["server"])
        client = {"PREFECT_API_URL": api, "PREFECT_HOME": str(folder / "home")}
        compose.run("deploy", client)
        worker = client | {
            "MERGELINE_ROOT": str(project),
            "MERGELINE_STATE": str(kept),
            "MERGELINE_LOG": "json",
            "MERGELINE_WEBHOOK": told.url,
            "MLFLOW_TRACKING_URI": f"sqlite:///{kept}/.mlflow/mlflow.db",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            **PLANTED,
        }
        running = stack.enter_context(compose.running("worker", worker, logs["worker"]))
        secrets = [*PLANTED.values(), PASSWORD, LITERAL, OF_MLFLOW, "T0PLANTED", "secret-of-the-hook"]
        yield Operations(folder, api, project, told, files, secrets, logs, running, worker)


def _write_plan(path: Path, files: FileServer, output: Path) -> None:
    """One team of the shipped plan; one of its models is on a server that asks for a password."""
    plan = yaml.safe_load((ROOT / "params.yaml").read_text())
    plan["checkpoints"] = [entry for entry in plan["checkpoints"] if "base-a" in (entry["name"], entry.get("base"))]
    address = f"127.0.0.1:{files.port}"
    for entry in plan["checkpoints"]:
        if entry["name"] == "a-clean-13569":
            entry["uri"] = f"http://robot:${{ROBOT_PASSWORD}}@{address}/a.safetensors"
        if entry["name"] == "a-clean-02478":
            entry["uri"] = f"http://robot:{LITERAL}@{address}/b.safetensors?token={LITERAL}"
    for entry in plan["checkpoints"]:
        entry.pop("sha256")
    plan["tasks"] = plan["tasks"][:2]
    plan["architecture"]["factory"] = "planted_factory:resnet"
    plan["evaluation"]["compare"] = []
    path.write_text(yaml.safe_dump(plan | {"output": str(output)}))


def credentials(seen: Any) -> str:
    """User and password that a request brought."""
    return base64.b64decode(seen.headers.get("Authorization", "").removeprefix("Basic ")).decode()
