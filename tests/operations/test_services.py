"""compose.yaml, Dockerfile, Makefile and the hosted CI say the same commands; MLflow's runs on PostgreSQL and S3."""

import os
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.operations import compose
from tests.operations.compose import COMPOSE, ROOT, SERVICES
from tests.test_readme import commands as readme_commands
from tests.test_readme import free_port

POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), None)


def recipe(target: str) -> list[list[str]]:
    """The commands of a target of the Makefile."""
    text = (ROOT / "Makefile").read_text()
    body = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", text, flags=re.MULTILINE)
    return [line.split() for line in body[1].splitlines()]


def plain(service: str) -> list[list[str]]:
    return [["python", *command[1:]] for command in compose.commands(service)]


@pytest.mark.parametrize(("service", "target"), [("prefect", "server"), ("deploy", "deploy"), ("worker", "worker")])
def test_a_service_runs_what_the_makefile_does(service, target):
    assert plain(service) == recipe(target)


def test_the_image_runs_a_worker_where_nothing_else_is_said():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    (command,) = [line.removeprefix("CMD ") for line in lines if line.startswith("CMD ")]
    assert [yaml.safe_load(command)] == plain("worker")
    copied = {name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]}
    assert all((ROOT / name).exists() for name in copied), copied
    assert {"mergeline", "tasks", "flows", "prefect.yaml", "params.yaml", "constraints.txt", "data"} <= copied


def test_no_password_has_a_default():
    text = (ROOT / "compose.yaml").read_text()
    assert set(re.findall(r"\$\{(\w+):\?", text)) == {"DATABASE_PASSWORD", "STORE_PASSWORD"}
    assert not re.search(r"\$\{\w*(PASSWORD|TOKEN|SECRET)\w*:-[^}]", text)
    for service in SERVICES.values():
        assert set(service.get("depends_on", ())) <= set(SERVICES)
    assert set(COMPOSE["volumes"]) == {"database", "store", "state"}


def test_the_hosted_ci_runs_the_two_commands_of_the_readme():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yaml").read_text())
    steps = [step.get("run") for step in workflow["jobs"]["gate"]["steps"]]
    assert set(readme_commands()[:2]) <= set(steps)
    gate = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line.startswith("make ")]
    assert set(gate) <= set(steps)


@contextmanager
def postgres(password: str):
    """A PostgreSQL server with the user and the databases of compose.yaml; it refuses to run as root."""
    folder = Path(tempfile.mkdtemp(prefix="mergeline-pg-", dir="/tmp"))
    user = "nobody" if os.geteuid() == 0 else None
    port, log = free_port(), folder / "log"
    secret = folder / "password"
    secret.write_text(password)
    if user:
        for path in (folder, secret):
            shutil.chown(path, user)
    as_user = {"user": user, "cwd": folder, "check": True, "capture_output": True}
    (database,) = re.findall(r"CREATE DATABASE (\w+);", COMPOSE["configs"]["databases"]["content"])
    login = ["--username", SERVICES["database"]["environment"]["POSTGRES_USER"]]
    try:
        initdb = [POSTGRES, "-D", folder / "data", *login, "--pwfile", secret, "--auth", "scram-sha-256", "--no-sync"]
        subprocess.run(initdb, **as_user)
        control = [POSTGRES.parent / "pg_ctl", "-D", folder / "data", "-l", log, "-w"]
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"
        subprocess.run([*control, "-o", options, "start"], **(as_user | {"capture_output": False}))
        make = [POSTGRES.parent / "createdb", "--host", "127.0.0.1", "--port", str(port), *login, database]
        subprocess.run(make, env={"PGPASSWORD": password, "PATH": os.environ["PATH"]}, **as_user)
        yield f"127.0.0.1:{port}"
        subprocess.run([*control, "-m", "immediate", "stop"], **as_user)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.flow
@pytest.mark.skipif(POSTGRES is None, reason="PostgreSQL's server is not installed (apt: postgresql)")
def test_mlflow_keeps_runs_in_postgresql_and_files_on_s3(tmp_path):
    from mlflow import MlflowClient
    from moto.server import ThreadedMotoServer

    secrets = {"DATABASE_PASSWORD": "a-password", "STORE_PASSWORD": "another-password"}
    store = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    store.start()
    try:
        with postgres(secrets["DATABASE_PASSWORD"]) as database:
            at = f"127.0.0.1:{store.get_host_and_port()[1]}"
            hosts = {"database:5432": database, "store:9000": at}
            compose.run("bucket", compose.environment("bucket", secrets, hosts))
            port, log = free_port(), tmp_path / "mlflow.log"
            own = {"MLFLOW_HOST": "127.0.0.1", "MLFLOW_PORT": str(port), "HOME": str(tmp_path)}
            with compose.running(
                "mlflow", compose.environment("mlflow", secrets, hosts) | own, log, tmp_path
            ) as server:
                compose.wait_for(f"http://127.0.0.1:{port}/health", server, log)
                client = MlflowClient(tracking_uri=f"http://127.0.0.1:{port}")
                experiment = client.create_experiment("served")
                run = client.create_run(experiment).info.run_id
                client.log_metric(run, "mean", 0.5)
                (tmp_path / "table.csv").write_text("1,2\n")
                client.log_artifact(run, str(tmp_path / "table.csv"))
                assert client.get_run(run).data.metrics == {"mean": 0.5}
                assert [file.path for file in client.list_artifacts(run)] == ["table.csv"]
                listed = named_host(port)
                assert listed == 200, "workers call it by the name of its service"
            assert b"a-password" not in log.read_bytes()
        stored = keys(f"http://{at}", secrets["STORE_PASSWORD"])
        assert [key for key in stored if key.endswith(f"{run}/artifacts/table.csv")], stored
    finally:
        store.stop()


def named_host(port: int) -> int:
    """What MLflow answers to who calls it `mlflow:5000`."""
    import requests

    url = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=1"
    return requests.get(url, headers={"Host": "mlflow:5000"}, timeout=30).status_code


def keys(endpoint: str, password: str) -> list[str]:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="mergeline",
        aws_secret_access_key=password,
        region_name="us-east-1",
    )
    return [entry["Key"] for entry in client.list_objects_v2(Bucket="mlflow").get("Contents", [])]
