"""Deployments as they are run: by the commands of compose.yaml, on a real server, by a real worker."""

import json
import os
import sqlite3
import subprocess
import sys

import pytest
import yaml
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, FlowRunFilter, FlowRunFilterId
from prefect.states import Scheduled

from tests.operations import compose
from tests.operations.compose import ROOT
from tests.operations.conftest import LITERAL, OF_MLFLOW, PASSWORD, credentials
from tests.test_readme import free_port

pytestmark = pytest.mark.flow
DEPLOYMENTS = {"merge/nightly-merge", "merge/on-demand", "search/search", "compare/compare"}


@pytest.fixture(scope="module")
def merged(operations):
    """One merge on demand, told to the webhook."""
    run = operations.start("merge/on-demand", overrides=["notify.on=[failure, success]"])
    assert run.state.is_completed(), operations.logs["worker"].read_text()
    return run


def children(operations, run):
    """The runs of plans that a deployed run made."""
    with operations.client() as client:
        parents = {task.id for task in client.read_task_runs(flow_run_filter=only(run.id))}
        return [found for found in client.read_flow_runs(limit=200) if found.parent_task_run_id in parents]


def events_of(operations, run):
    """The names of the events about a run."""
    asked = {"filter": {"event": {"prefix": ["prefect.flow-run."]}}, "limit": 50}
    with operations.client() as client:
        events = client.request("POST", "/events/filter", json=asked).json()["events"]
    return {event["event"] for event in events if event["resource"]["prefect.resource.id"].endswith(str(run.id))}


def only(run):
    return FlowRunFilter(id=FlowRunFilterId(any_=[run]))


def test_every_deployment_of_the_file_is_there_with_a_form(operations):
    with operations.client() as client:
        found = {name: client.read_deployment_by_name(name) for name in DEPLOYMENTS}
    written = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert {name.partition("/")[2] for name in found} == {entry["name"] for entry in written}
    for name, deployment in found.items():
        assert deployment.work_pool_name == "merges"
        assert "mergeline" in deployment.tags
        fields = deployment.parameter_openapi_schema["properties"]
        assert set(deployment.parameters) == set(fields), name
        assert all(field["description"] for field in fields.values()), name
    form = found["merge/on-demand"].parameter_openapi_schema["properties"]
    assert {name: field["type"] for name, field in form.items()} == {
        "params": "string",
        "overrides": "array",
        "only_if_changed": "boolean",
        "fresh": "boolean",
    }
    nightly = found["merge/nightly-merge"]
    assert nightly.parameters["only_if_changed"] is True
    assert (nightly.global_concurrency_limit.limit, nightly.concurrency_options.collision_strategy) == (1, "CANCEL_NEW")


def test_a_parameter_of_the_wrong_type_is_refused_at_once(operations):
    from prefect.exceptions import PrefectHTTPStatusError

    with pytest.raises(PrefectHTTPStatusError, match=r"409|422"):
        operations.start("merge/on-demand", only_if_changed="perhaps")


def test_a_run_on_demand_leaves_its_table_links_progress_and_events(operations, merged):
    (run,) = children(operations, merged)
    assert run.state.is_completed()
    assert "10 stages, 0 of them from the cache" in merged.state.message
    with operations.client() as client:
        artifacts = {found.key: found for found in client.read_artifacts(flow_run_filter=only(run.id))}
    assert set(artifacts) == {f"two-teams-{what}" for what in ("result", "report", "mlflow", "progress")}
    (row,) = json.loads(artifacts["two-teams-result"].data)
    comparison = json.loads((operations.folder / "published" / "comparison.json").read_text())["rows"][0]
    assert row["method"] == comparison["label"]
    assert float(row["joint"].split()[0]) == pytest.approx(100 * comparison["joint"]["value"], abs=0.051)
    assert (operations.folder / "published" / "report.html").as_uri() in artifacts["two-teams-report"].data
    assert artifacts["two-teams-progress"].data == 100
    while {"prefect.flow-run.Running", "prefect.flow-run.Completed"} - events_of(operations, run):
        operations.look_again()  # they come a moment after the states


def test_the_schedule_makes_runs_and_one_of_them_finds_nothing_new(operations, merged):
    with operations.client() as client:
        nightly = client.read_deployment_by_name("merge/nightly-merge")
        (schedule,) = nightly.schedules
        assert (schedule.schedule.cron, schedule.active) == ("0 2 * * *", True)
        of_it = DeploymentFilter(id=DeploymentFilterId(any_=[nightly.id]))
        while not (planned := client.read_flow_runs(deployment_filter=of_it)):
            operations.look_again()
        assert all(run.auto_scheduled and run.expected_start_time.hour == 2 for run in planned)
        due = min(planned, key=lambda run: run.expected_start_time)
        client.set_flow_run_state(due.id, Scheduled(), force=True)  # the night comes early
        night = operations.finished(client, due.id)
    assert (night.state.name, night.state.type.value) == ("nothing new", "COMPLETED")
    assert children(operations, night) == []


def test_a_comparison_ranks_its_cells_and_computes_what_they_share_once(operations, merged):
    run = operations.start("compare/compare", grid={"merge.keep_ratio": [0.1, 0.3]}, overrides=["tracking.enabled=no"])
    assert run.state.is_completed(), run.state.message
    table = (operations.folder / "two-teams-compared" / "leaderboard.csv").read_text().splitlines()
    assert table[0].startswith("rank,cell,mean,mean ±,joint,joint ±,clean-02478")
    assert [line.split(",")[1] for line in table[1:]] == ["merge.keep_ratio=0.3", "merge.keep_ratio=0.1"]
    with operations.client() as client:
        keys = {found.key for found in client.read_artifacts(limit=200)}
    assert "two-teams-leaderboard" in keys


def test_a_failure_is_told_to_the_webhook(operations, merged):
    operations.hook.messages.clear()
    run = operations.start("merge/on-demand", overrides=["architecture.kwargs.failing=true"])
    assert run.state.is_failed()
    (told,) = operations.hook.messages
    assert told["end"] == "failure" and told["plan"] == "two-teams" and told["path"].endswith("secret-of-the-hook")
    assert "cannot log in with *** at https://***@hub" in told["error"]
    operations.start("merge/on-demand", overrides=["merge.keep_ratio=7"])
    assert "keep_ratio" in operations.hook.messages[-1]["error"], "a plan that cannot be read is told of, too"


def test_the_log_has_one_json_object_per_line(operations, merged):
    lines = operations.logs["worker"].read_text().splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    finished = [event for event in events if event["event"] == "stage finished"]
    assert {"merge", "evaluate", "download-checkpoint"} <= {event["name"] for event in finished}
    assert all(event["seconds"] >= 0 and event["peak_rss_mb"] > 10 and event["flow_run"] for event in finished)
    assert any(event["event"] == "run summary" and event.get("stages") == 10 for event in events)


@pytest.fixture
def without_mlflow(operations):
    """A promotion and a merge of a registered model while the MLflow server, whose address has a password, is down."""
    plan = yaml.safe_load((operations.project / "params.yaml").read_text())
    plan["checkpoints"][1]["uri"] = "models:/team@champion"
    plan |= {"name": "registered", "registry": {"model": "team"}, "promotion": {"floor": 0.5}}
    (operations.project / "registered.yaml").write_text(yaml.safe_dump(plan))
    address = f"http://robot:{OF_MLFLOW}@127.0.0.1:{free_port()}"
    given = operations.given | {"MLFLOW_TRACKING_URI": address, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    environment = compose.clean() | given | {"PYTHONPATH": f"{ROOT}{os.pathsep}{operations.project}"}
    processes = {}
    for flow in ("promote", "merge_and_evaluate"):
        command = [sys.executable, "-m", f"flows.{flow}", "--params", "registered.yaml"]
        with (operations.folder / f"{flow}.log").open("wb") as log:
            processes[flow] = subprocess.Popen(command, cwd=operations.project, env=environment, stdout=log, stderr=log)
    for flow, process in processes.items():
        assert process.wait() == 1, (operations.folder / f"{flow}.log").read_text()


def test_no_secret_is_anywhere(operations, merged, without_mlflow):
    """Run last: after merges, a comparison, and failures that quote one."""
    sent = {credentials(seen) for seen in operations.files.seen}
    assert sent == {f"robot:{PASSWORD}", f"robot:{LITERAL}"}, "they did their work"
    with sqlite3.connect(operations.folder / "prefect.db") as database:
        database.execute("pragma wal_checkpoint(truncate)")
        assert "two-teams" in str(database.execute("select parameters from flow_run").fetchall())
        for kept in (
            "select message from task_run_state",
            "select message from flow_run_state",
            "select message from log",
        ):
            said = [message for (message,) in database.execute(kept) if message and "MLflow does not answer" in message]
            failed = {"team: ", "models:/team@champion: "}
            assert {what for what in failed for text in said if what in text} == failed, kept
            assert all("http://***@127.0.0.1" in text for text in said), kept
    files = [path for path in operations.folder.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"prefect.db", "mlflow.db", "lineage.json", "report.md", "worker.log", "server.log"} <= names
    for path in files:
        content = path.read_bytes()
        assert not [secret for secret in operations.secrets if secret.encode() in content], path
