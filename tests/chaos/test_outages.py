"""Servers that are killed while the main job works: the merge goes on, and nothing is lost or told twice."""

import os
import subprocess
import sys
from collections import Counter

import pytest
from mlflow import MlflowClient

from tests.chaos.attempts import ROOT, Merge, check_end, small_plan
from tests.flows.runs import published
from tests.servers import free_port, kill, server

pytestmark = pytest.mark.flow


def test_the_merge_outlives_prefects_server(kitchen, unbroken, tmp_path):
    merge, port = Merge(kitchen, tmp_path / "outlives", small_plan()), free_port()
    settings = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_CLIENT_MAX_RETRIES": 0}
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with server(*command, port=port, log=tmp_path / "log", PREFECT_HOME=str(tmp_path / "home")) as process:
        code = merge.run(kill=("solve-permutations", 1), victim=process.pid, settings=settings)
        assert process.wait() != 0
    assert code == 0
    assert merge.computed() == unbroken.computed(0)
    check_end(merge, unbroken.expected)

    assert merge.run(settings=settings) == 0, "with no server to begin with, it starts one of its own"
    assert merge.computed() == []
    check_end(merge, unbroken.expected)


def test_records_are_delivered_when_mlflow_is_back(kitchen, unbroken, tmp_path):
    """Recorded, then killed; a run meanwhile; the server is back; two deliveries at once, and a run that goes on."""
    merge, port = Merge(kitchen, tmp_path / "delivered", small_plan()), free_port()
    uri = f"http://127.0.0.1:{port}"
    place = ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--artifacts-destination", str(tmp_path / "a")]
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *place]

    def runs():
        client = MlflowClient(uri)
        return client.search_runs([client.get_experiment_by_name("delivered").experiment_id])

    with server(*command, port=port, log=tmp_path / "log") as process:
        assert merge.run(mlflow=uri) == 0
        assert len(runs()) == 1
        kill(process)
        assert merge.run(mlflow=uri) == 0
    assert published(merge.output) == unbroken.expected
    [kept] = (merge.state / ".mlflow" / "pending" / "delivered").glob("[!.]*")
    with server(*command, port=port, log=tmp_path / "log"):
        environment = os.environ | {"MERGELINE_STATE": str(merge.state), "MLFLOW_TRACKING_URI": uri}
        sync = [sys.executable, "-m", "flows.sync_tracking"]
        both = [subprocess.Popen(sync, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        said = sorted(process.communicate()[0] for process in both)
        assert [process.returncode for process in both] == [0, 0], said
        assert sum("1 delivered" in line for line in said) == 1, said
        assert not kept.exists()
        assert merge.run(mlflow=uri) == 0
        found = runs()
        assert Counter(run.info.status for run in found) == {"FINISHED": 3}
        assert len({run.data.tags["mergeline.record"] for run in found}) == 3
        files = [{file.path for file in MlflowClient(uri).list_artifacts(run.info.run_id)} for run in found]
        assert files[0] == files[1] == files[2] >= {"model.safetensors", "report.md", "report.html"}
