"""Tracking into a real MLflow store (a temporary SQLite file), read back through MLflow; and without one."""

import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tasks.outbox import interrupted_or_new
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
    parent = tracker.record("sweep", identity="the sweep")
    child = tracker.record("point", part_of="the sweep")
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


@pytest.mark.parametrize("call", ["create_run", "log_batch", "log_inputs", "log_artifact", "set_terminated"])
def test_a_server_that_dies_after_having_accepted_it_is_not_told_twice(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    (tmp_path / "a.txt").write_text("a")
    whole = getattr(MlflowClient, call)

    def accept_and_die(*args: Any, **kwargs: Any) -> None:
        whole(*args, **kwargs)
        raise ConnectionError("no answer")

    used = DatasetUse(name="fashion", sha256="ab" * 32, context="test")
    with monkeypatch.context() as dying:
        dying.setattr(MlflowClient, call, accept_and_die)
        assert (
            tracker.record(
                "once", params={"p": 1}, series={"s": [1, 2]}, artifacts=[tmp_path / "a.txt"], datasets=[used]
            )
            is None
        )
    [delivered] = tracker.deliver_pending()
    run = read(tracker, delivered)
    [only] = MlflowClient(tracker.uri).search_runs([run.info.experiment_id])
    assert (only.info.run_id, only.info.status, only.data.params) == (delivered, "FINISHED", {"p": "1"})
    assert len(run.inputs.dataset_inputs) == 1
    history = MlflowClient(tracker.uri).get_metric_history(delivered, "s")
    assert [(point.step, point.value) for point in history] == [(0, 1), (1, 2)]
    assert [file.path for file in MlflowClient(tracker.uri).list_artifacts(delivered)] == ["a.txt"]
    assert tracker.deliver_pending() == []


def test_records_are_delivered_once_by_many_at_once(state: Path, dead_uri: str, store: str) -> None:
    for number in range(6):
        Tracker("many at once", dead_uri).record(f"run {number}")
    with ThreadPoolExecutor(3) as pool:
        sent = [
            run
            for runs in pool.map(lambda _: Tracker("many at once", store).deliver_pending(), range(3))
            for run in runs
        ]
    assert len(set(sent)) == len(sent) == 6


def test_a_record_that_mlflow_refuses_does_not_hold_up_the_others(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    create = MlflowClient.create_run

    def refuse(self: MlflowClient, experiment: str, start: int, tags: dict[str, str], name: str) -> Run:
        if name == "refused":
            raise ValueError("not this one")
        return create(self, experiment, start, tags, name)

    with monkeypatch.context() as down:
        down.setattr(Tracker, "_send", lambda self, record: 1 / 0)
        assert [tracker.record(name) for name in ("refused", "taken")] == [None, None]
    monkeypatch.setattr(MlflowClient, "create_run", refuse)
    [taken] = tracker.deliver_pending()
    assert read(tracker, taken).info.run_name == "taken"
    assert "not this one" in caplog.text
    monkeypatch.undo()


def test_the_record_of_a_killed_run_is_gone_on_with(tracker: Tracker) -> None:
    class Killed(BaseException):
        pass

    identities = []
    with pytest.raises(Killed), interrupted_or_new("a merge") as identity:
        identities.append(identity)
        first = tracker.record("merge", identity=identity, tags={"flow": "first"})
        raise Killed
    with interrupted_or_new("a merge") as identity, interrupted_or_new("a merge") as another:
        identities += [identity, another]
        again = tracker.record("merge", identity=identity, tags={"flow": "second"})
    assert first == again
    assert read(tracker, again).data.tags["flow"] == "second"
    with interrupted_or_new("a merge") as identity:
        identities.append(identity)
    assert identities[0] == identities[1]
    assert len(set(identities)) == 3


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_record_that_replaces_another_is_never_gone(tracker: Tracker, tmp_path: Path, after: int) -> None:
    """Killed after the first, second or third rename or removal within the replacement: one of both waits."""

    class Killed(BaseException):
        pass

    file = tmp_path / "numbers"
    file.write_text("1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracker, "_send", lambda self, record: 1 / 0)
        assert tracker.record("merge", identity="same", artifacts=[file]) is None
        file.write_text("2")
        done = []

        def killed(whole: Any) -> Any:
            def step(*arguments: Any, **named: Any) -> Any:
                result = whole(*arguments, **named)
                done.append(whole)
                if len(done) == after:
                    raise Killed
                return result

            return step

        for name in ("rename", "unlink"):
            patch.setattr(Path, name, killed(getattr(Path, name)))
        patch.setattr("tasks.outbox.shutil.rmtree", killed(shutil.rmtree))
        with pytest.raises(Killed):
            tracker.record("merge", identity="same", artifacts=[file])
    [run] = tracker.deliver_pending()
    assert [entry.path for entry in MlflowClient(tracker.uri).list_artifacts(run)] == ["numbers"]
    assert not list(Path(os.environ["MERGELINE_STATE"]).glob(".mlflow/pending/*/*"))


MAKE = """
import os, signal, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine
from tasks.tracking import Tracker

left = [int(sys.argv[1])]

def count(*_):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)

event.listen(Engine, "before_cursor_execute", count)
print(Tracker("made").record("first"))
"""


def test_a_database_that_was_half_made_is_made_again(state: Path) -> None:
    dying = subprocess.run([sys.executable, "-c", MAKE, "100"], check=False)
    assert dying.returncode == -signal.SIGKILL
    assert not (state / ".mlflow" / "mlflow.db").exists()
    [line] = subprocess.check_output([sys.executable, "-c", MAKE, "0"], text=True).splitlines()
    assert not list((state / ".mlflow").glob(".draft*"))
    assert read(Tracker("made"), line).info.status == "FINISHED"


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


def begin(tracker: Tracker, identity: str, **more: Any) -> str | None:
    return tracker.record("search", identity=identity, phase="begun", params={"search": {"seed": 3}}, **more)


def test_a_run_that_was_begun_is_gone_on_with(tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "best.yaml").write_text("{}")

    def end(best: float, values: list[float], artifacts: list[Path]) -> str | None:
        metrics, series = {"best": best}, {"value": values}
        return tracker.record(
            "search", identity="one", phase="ended", metrics=metrics, series=series, artifacts=artifacts
        )

    parent = begin(tracker, "one")
    assert parent is not None
    assert tracker.parts("one", "number") == set()
    tracker.record("trial 0", tags={"number": "0"}, part_of="one")
    again = Tracker(tracker.experiment, tracker.uri)  # another process, after a kill
    assert begin(again, "one") == parent
    assert again.parts("one", "number") == {"0"}
    assert end(0.5, [0.5], [tmp_path / "best.yaml"]) == parent
    assert read(tracker, parent).info.status == "FINISHED"
    assert begin(tracker, "one") == parent
    assert read(tracker, parent).info.status == "RUNNING"
    assert end(0.4, [0.5, 0.7], []) == parent
    history = MlflowClient(tracker.uri).get_metric_history(parent, "value")
    assert [(point.step, point.value) for point in history] == [(0, 0.5), (1, 0.7)]
    assert read(tracker, parent).data.metrics["best"] == 0.4, "the latest counts, not the largest"
    assert begin(tracker, "two") not in (None, parent)


def test_a_run_that_ended_is_not_opened_by_what_is_delivered_late(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as down:
        down.setattr(Tracker, "_send", lambda self, record: 1 / 0)
        assert begin(tracker, "one") is None
    ended = tracker.record("search", identity="one", phase="ended")
    assert tracker.deliver_pending() == [ended]
    assert read(tracker, ended).info.status == "FINISHED"


def test_a_part_waits_for_the_whole(tracker: Tracker, caplog: pytest.LogCaptureFixture) -> None:
    assert tracker.record("trial 0", identity="t", part_of="one") is None
    assert "the run that it is part of (record one) is not in MLflow" in caplog.text
    assert begin(tracker, "one", later=True) is None
    parent, child = tracker.deliver_pending()
    assert read(tracker, child).data.tags["mlflow.parentRunId"] == parent
    assert read(tracker, parent).info.status == "RUNNING"
