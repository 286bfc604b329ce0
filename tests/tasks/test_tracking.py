"""Tracking into a real MLflow store (a temporary SQLite file), read back through MLflow; and without one."""

import logging
import math
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tasks.tracking import DatasetUse, Tracker

STARTED = 1_700_000_000.5


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests of this file: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def tracker(state: Path, store: str, request: pytest.FixtureRequest) -> Tracker:
    return Tracker(request.node.name, store)


@pytest.fixture
def dead_uri(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that is down, refused at once and not asked twice."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but it does not listen
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def read(tracker: Tracker, run: str | None) -> Run:
    assert run is not None
    return MlflowClient(tracker.uri).get_run(run)


def test_everything_that_was_told_can_be_read_back(tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "page.html").write_text("<p>")
    (tmp_path / "metrics.json").write_text("{}")
    run = tracker.record(
        "pcb",
        params={"merge": {"method": "pcb", "keep_ratio": 0.2}, "seeds": [1, 2], "long": "x" * 7000},
        metrics={"joint accuracy": 71.4, "diverged": math.inf},
        artifacts=[tmp_path / "report", tmp_path / "metrics.json"],
        datasets=[DatasetUse(name="fashion", sha256="ab" * 32, source="data/x.parquet", context="test")],
        tags={"mergeline.model_sha256": "cd" * 32},
        started=STARTED,
    )
    read_back = read(tracker, run)
    assert read_back.info.run_name == "pcb"
    assert read_back.info.status == "FINISHED"
    assert read_back.info.start_time == STARTED * 1000
    assert read_back.info.end_time > STARTED * 1000
    assert read_back.data.params == {
        "merge.method": "pcb",
        "merge.keep_ratio": "0.2",
        "seeds": "[1, 2]",
        "long": "x" * 6000,
    }
    assert read_back.data.metrics["joint accuracy"] == 71.4
    assert read_back.data.metrics["diverged"] > 1e300
    assert read_back.data.tags["mergeline.model_sha256"] == "cd" * 32
    [used] = read_back.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("fashion", ("ab" * 32)[:36])
    assert "data/x.parquet" in used.dataset.source
    assert {tag.key: tag.value for tag in used.tags} == {"mlflow.data.context": "test"}
    client = MlflowClient(tracker.uri)
    assert [file.path for file in client.list_artifacts(str(run))] == ["metrics.json", "report"]
    assert [file.path for file in client.list_artifacts(str(run), "report")] == ["report/page.html"]


def test_a_run_may_be_part_of_another(tracker: Tracker) -> None:
    parent = tracker.record("sweep")
    child = tracker.record("point", parent=parent)
    assert read(tracker, child).data.tags["mlflow.parentRunId"] == parent


def test_more_values_than_one_call_takes(tracker: Tracker) -> None:
    params = {f"p{number}": number for number in range(250)}
    metrics = {f"m{number}": float(number) for number in range(2100)}
    data = read(tracker, tracker.record("many", params=params, metrics=metrics)).data
    assert data.params == {key: str(value) for key, value in params.items()}
    assert data.metrics == metrics


def test_names_that_mlflow_refuses_are_mended(tracker: Tracker) -> None:
    data = read(tracker, tracker.record("odd", params={"a[0]": 1}, metrics={"accuracy (%)": 1.0})).data
    assert (data.params, data.metrics) == ({"a_0_": "1"}, {"accuracy ___": 1.0})


def test_runs_of_threads_do_not_mix(tracker: Tracker) -> None:
    def write(number: int) -> str | None:
        return tracker.record(f"run {number}", params={"number": number})

    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(write, range(8)))
    found = {read(tracker, run).data.params["number"] for run in runs}
    assert found == {str(number) for number in range(8)}


def test_the_artifacts_lie_in_the_state(tracker: Tracker, state: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    run = read(tracker, tracker.record("a", artifacts=[tmp_path / "a.txt"]))
    assert run.info.artifact_uri.startswith((state / ".mlflow" / "artifacts").as_uri())


def test_processes_that_use_a_new_store_first_do_not_race(state: Path) -> None:
    script = "from tasks.tracking import Tracker; print(Tracker('race').record('a'))"
    writers = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    runs = [writer.communicate()[0].strip() for writer in writers]
    default = Tracker("race")
    assert default.uri == f"sqlite:///{state / '.mlflow' / 'mlflow.db'}"
    assert {read(default, run).info.run_name for run in runs} == {"a"}
    assert len({read(default, run).info.experiment_id for run in runs}) == 1


def test_a_dead_server_is_a_warning_and_the_record_is_delivered_later(
    state: Path, dead_uri: str, store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.json").write_text("first")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").touch()
    files = [tmp_path / "metrics.json", tmp_path / "folder"]
    dead = Tracker("later", dead_uri)
    with caplog.at_level(logging.WARNING, "tasks.tracking"):
        run = dead.record("lost", params={"a": 1}, metrics={"x": math.nan}, artifacts=files, started=STARTED)
    assert run is None
    assert "was not recorded in MLflow" in caplog.text
    assert str(state / ".mlflow" / "pending" / "later") in caplog.text
    (tmp_path / "metrics.json").write_text("second")
    assert dead.deliver_pending() == []

    alive = Tracker("later", store)
    assert Tracker("another experiment", store).deliver_pending() == []
    [delivered] = alive.deliver_pending()
    record = read(alive, delivered)
    assert (record.info.run_name, record.info.start_time) == ("lost", STARTED * 1000)
    assert (record.data.params, math.isnan(record.data.metrics["x"])) == ({"a": "1"}, True)
    copy = MlflowClient(store).download_artifacts(delivered, "metrics.json", str(tmp_path / "folder"))
    assert Path(copy).read_text() == "first"
    assert alive.deliver_pending() == []


def test_a_record_of_a_file_that_is_not_there_is_not_begun(
    tracker: Tracker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = tracker.record("whole")
    assert tracker.record("half", artifacts=[tmp_path / "missing"]) is None
    assert "'half' cannot be recorded" in caplog.text
    experiment = read(tracker, first).info.experiment_id
    assert [run.info.run_name for run in MlflowClient(tracker.uri).search_runs([experiment])] == ["whole"]


@pytest.mark.parametrize("metrics", [{"a": "much"}, {"a": None}, {"a": [1]}])
def test_a_record_that_cannot_be_made_is_a_warning(
    tracker: Tracker, metrics: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    assert tracker.record("bad", metrics=metrics) is None
    assert "'bad' cannot be recorded" in caplog.text


def test_it_says_where_to_look(tracker: Tracker, store: str) -> None:
    assert tracker.where() == f"mlflow ui --backend-store-uri {store}"
    server = Tracker("x", "http://host:5000/")
    server._connection = (None, "12")
    assert server.where("abc") == "http://host:5000/#/experiments/12/runs/abc"
    assert server.where() == "http://host:5000/"


def test_the_package_is_not_imported_before_it_is_needed() -> None:
    script = "import sys, tasks.tracking; tasks.tracking.Tracker('x').where(); print('mlflow' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "False\n"


def test_a_run_that_was_begun_is_gone_on_with(tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "best.yaml").write_text("{}")
    identity = ("mergeline.search", "it's a name")
    parent = tracker.begin("search", params={"search": {"seed": 3}}, identity=("mergeline.search", "one"))
    assert parent is not None
    assert tracker.parts(parent, "number") == set()
    tracker.record("trial 0", tags={"number": "0"}, parent=parent)
    again = Tracker(tracker.experiment, tracker.uri)  # another process, after a kill
    assert again.begin("search", params={"search": {"seed": 3}}, identity=("mergeline.search", "one")) == parent
    assert again.parts(parent, "number") == {"0"}
    again.finish(parent, metrics={"best": 0.5}, series={"value": [0.5]}, artifacts=[tmp_path / "best.yaml"])
    assert read(tracker, parent).info.status == "FINISHED"
    longer = tracker.begin("search", params={"search": {"seed": 3}}, identity=("mergeline.search", "one"))
    assert longer == parent
    assert read(tracker, parent).info.status == "RUNNING"
    tracker.finish(parent, metrics={"best": 0.7}, series={"value": [0.5, 0.7]}, artifacts=[])
    history = MlflowClient(tracker.uri).get_metric_history(parent, "value")
    assert [(point.step, point.value) for point in history] == [(0, 0.5), (1, 0.7)]
    assert read(tracker, parent).data.metrics["best"] == 0.7
    assert tracker.begin("search", params={}, identity=("mergeline.search", "two")) not in (None, parent)
    assert tracker.begin("search", params={}, identity=identity) == tracker.begin(
        "search", params={}, identity=identity
    )


def test_nothing_is_begun_where_there_is_no_server(
    state: Path, dead_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker("search", dead_uri)
    assert tracker.begin("search", params={}, identity=("mergeline.search", "one")) is None
    assert tracker.parts("abc", "number") is None
    tracker.finish("abc", metrics={}, series={}, artifacts=[])
    assert len([entry for entry in caplog.records if entry.levelno == logging.WARNING]) == 3
