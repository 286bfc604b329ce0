"""The record of runs: MLflow, by explicit run ids, imported on first use. Tracking warns where it fails; runs go on.

A record is put down in the outbox (`tasks/outbox.py`) before it is sent, and removed when MLflow has it: what a crash
or an outage interrupts is delivered later, by the next run or `flows/sync_tracking.py`. Its identity is a tag of the
run, so nothing is written twice, not even where an answer was lost. The default store is a SQLite file; its artifact
addresses are absolute, so a project that is moved keeps its numbers but loses the links to files logged before.
"""

import json
import logging
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from mergeline.redaction import redact
from tasks import outbox
from tasks._env import state_directory
from tasks.locks import exclusive

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

IDENTITY, PART_OF = "mergeline.record", "mergeline.part_of"  # tags; PART_OF: the identity of the record of the whole
_PARAMS_PER_CALL, _METRICS_PER_CALL, _PARAM_LENGTH, _DIGEST_LENGTH = 100, 1000, 6000, 36  # limits of MLflow


class DatasetUse(BaseModel):
    """Which data a run used, and for what (`context`: "calibration", "validation", "test")."""

    model_config = ConfigDict(frozen=True)

    name: str
    sha256: str
    source: str = ""
    context: str = ""


class Registration(BaseModel):
    """A model that is registered with its run: the run's artifact `model`, a version with these tags."""

    model_config = ConfigDict(frozen=True)

    model: str
    tags: dict[str, str]


class RunRecord(BaseModel):
    """All that is told about one run; two records of one identity are the same. Times are seconds since the epoch."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    name: str
    identity: str = ""
    experiment: str = ""
    params: dict[str, str] = {}
    metrics: dict[str, float] = {}
    series: dict[str, list[float]] = {}
    artifacts: list[Path] = []
    datasets: list[DatasetUse] = []
    tags: dict[str, str] = {}
    started: float = 0.0
    ended: float = 0.0
    registration: Registration | None = None


class Tracker:
    """Writes records into one experiment. uri: default MLFLOW_TRACKING_URI, else the project's own SQLite file."""

    def __init__(self, experiment: str, uri: str | None = None) -> None:
        self.experiment = experiment
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_home() / 'mlflow.db'}"
        self._connection: tuple[MlflowClient, str] | None = None
        self._mutex = threading.Lock()

    def record(
        self,
        name: str,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        series: Mapping[str, Sequence[float]] | None = None,
        artifacts: Iterable[Path] = (),
        datasets: Iterable[DatasetUse] = (),
        tags: Mapping[str, str] | None = None,
        parent: str | None = None,
        started: float | None = None,
        registration: Registration | None = None,
        identity: str | None = None,
    ) -> str | None:
        """Write one finished run and return its id; None (and a warning) where that failed: it is then kept for later.

        params: may be nested, {"merge": {"method": …}} becomes "merge.method". series: metrics over steps 0, 1, ….
        artifacts: files and folders, logged under their own names. parent: the id of the run that this one is part of.
        registration: what is registered with the run; one of its artifacts is the folder `model`.
        identity: a record that was begun under the same one is gone on with (default: a new one).
        """
        now = time.time()
        try:
            record = RunRecord(
                identity=identity or uuid.uuid4().hex,
                experiment=self.experiment,
                name=name,
                params=dict(_flat(params or {})),
                metrics={_key(key): float(value) for key, value in (metrics or {}).items()},
                series={_key(key): [float(value) for value in values] for key, values in (series or {}).items()},
                artifacts=list(artifacts),
                datasets=list(datasets),
                tags={key: redact(tag) for key, tag in (tags or {}).items()}
                | ({"mlflow.parentRunId": parent} if parent else {}),
                started=now if started is None else started,
                ended=now,
                registration=registration,
            )
            for path in record.artifacts:
                path.stat()
        except (TypeError, ValueError, OSError) as error:
            log.warning("run %r cannot be recorded: %s", name, error)
            return None
        try:
            folder = self._keep(record)
        except OSError as error:
            log.warning("run %r cannot be kept for later, should MLflow be down: %s", name, error)
            folder = None
        try:
            run = self._send(record) if folder is None else self._deliver(folder)
            return run or self._run_of(record.identity)  # another process may have delivered it meanwhile
        except Exception as error:  # whatever it is, a merge of hours is worth more than its record
            log.warning("run %r was not recorded in MLflow at %s: %s", name, self.uri, error)
            if folder is not None:
                log.warning("it is kept for later in %s", folder)
            return None

    def begin(self, name: str, *, params: Mapping[str, Any], identity: tuple[str, str]) -> str | None:
        """Open the run that others will be parts of, and return its id; None (and a warning) where that failed.

        identity: a tag and its value. A run that has it is gone on with, also one whose process was killed.
        """
        try:
            client, experiment = self._connect()
            known = next(self._runs(*identity), None)
            if known is not None:
                client.update_run(known.info.run_id, "RUNNING")
            begun = known or client.create_run(experiment, tags=dict([identity]), run_name=name)
            pairs = dict(_flat(params))
            record = RunRecord(name=name, params=pairs)
            self._fill(client, begun, record)  # again, too: it may have been killed before this
        except Exception as error:
            log.warning("run %r was not begun in MLflow at %s: %s", name, self.uri, error)
            return None
        return str(begun.info.run_id)

    def parts(self, parent: str, tag: str) -> set[str] | None:
        """The values of a tag among the runs that are parts of another; None (and a warning) where that failed."""
        try:
            return {run.data.tags[tag] for run in self._runs("mlflow.parentRunId", parent) if tag in run.data.tags}
        except Exception as error:
            log.warning("the parts of run %s were not found in MLflow at %s: %s", parent, self.uri, error)
            return None

    def finish(
        self, run_id: str, *, metrics: Mapping[str, float], series: Mapping[str, Sequence[float]], artifacts: list[Path]
    ) -> None:
        """Close a run that was begun. Steps of a series that it has already are not written again."""
        try:
            client, _ = self._connect()
            self._finish(client, run_id, metrics, series, artifacts)
        except Exception as error:
            log.warning("run %s was not finished in MLflow at %s: %s", run_id, self.uri, error)

    def _finish(
        self,
        client: "MlflowClient",
        run_id: str,
        metrics: Mapping[str, float],
        series: Mapping[str, Sequence[float]],
        artifacts: list[Path],
    ) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [Metric(_key(name), value, now, 0) for name, value in metrics.items()]
        for name, values in series.items():
            known = {point.step for point in client.get_metric_history(run_id, _key(name))}
            rows += [Metric(_key(name), x, now, step) for step, x in enumerate(values) if step not in known]
        for start in range(0, len(rows), _METRICS_PER_CALL):
            client.log_batch(run_id, metrics=rows[start : start + _METRICS_PER_CALL])
        for path in artifacts:
            client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, "FINISHED")

    def _runs(self, tag: str, value: str) -> "Iterator[Run]":
        client, experiment = self._connect()
        token: str | None = None
        while True:
            page = client.search_runs([experiment], f"tags.`{tag}` = '{value}'", page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def deliver_pending(self) -> list[str]:
        """Send the records of this experiment that were kept; returns the ids of the runs.

        One that MLflow refuses does not hold up the others; where MLflow does not answer at all, it stops.
        """
        sent: list[str] = []
        for folder in outbox.pending(self.experiment):
            try:
                run = self._deliver(folder)
            except Exception as error:
                log.warning("kept run %s could not be delivered to %s: %s", folder.name, self.uri, error)
                if not self._answers():
                    break
            else:
                sent += [run] if run else []
        return sent

    def _deliver(self, folder: Path) -> str | None:
        """Send a kept record and remove it; None where somebody else did that meanwhile."""
        with outbox.one_sender():
            if not (folder / outbox.RECORD).is_file():
                return None
            run = self._send(_read(folder))
            outbox.remove(folder)
            return run

    def _run_of(self, identity: str) -> str | None:
        known = next(self._runs(IDENTITY, identity), None)
        return str(known.info.run_id) if known else None

    def _answers(self) -> bool:
        try:
            client, experiment = self._connect()
            client.get_experiment(experiment)
        except Exception:
            return False
        return True

    def where(self, run_id: str | None = None) -> str:
        """Where to look: the address of the run on a server, or the command that shows the local file."""
        if not self.uri.startswith(("http://", "https://")):
            return f"mlflow ui --backend-store-uri {redact(self.uri)}"
        if run_id is None or self._connection is None:
            return redact(self.uri)
        return f"{redact(self.uri).rstrip('/')}/{self.page(run_id)}"

    def page(self, run_id: str) -> str:
        """The path of a run among MLflow's pages, once a run was recorded."""
        return f"#/experiments/{self._connect()[1]}/runs/{run_id}"

    def _send(self, record: RunRecord) -> str:
        """Write a run, or what is missing of it; all of this may be said twice."""
        client, experiment = self._connect()
        known = next(self._runs(IDENTITY, record.identity), None)
        tags = record.tags | {IDENTITY: record.identity}
        if PART_OF in tags:  # the first of its parts opens the run of the whole
            opened = self._run_of(tags[PART_OF]) or client.create_run(
                experiment, tags={IDENTITY: tags[PART_OF]}, run_name=tags.get("mergeline.plan")
            )
            tags["mlflow.parentRunId"] = opened if isinstance(opened, str) else opened.info.run_id
        run = known or client.create_run(experiment, int(record.started * 1000), tags, record.name)
        for name, value in tags.items():
            if run.data.tags.get(name) != value:  # of an earlier attempt
                client.set_tag(run.info.run_id, name, value)
        if run.info.status != "FINISHED":
            self._fill(client, run, record)
            if record.registration:
                self._register(client, run.info.run_id, record.registration)
            client.set_terminated(run.info.run_id, "FINISHED", int(record.ended * 1000))
        return str(run.info.run_id)

    def _register(self, client: "MlflowClient", run: str, registration: Registration) -> None:
        """Register a run's model. What cannot be mended by sending the record again later is a warning."""
        from tasks.registry import is_passing, register

        try:
            register(client, run, registration)
        except Exception as error:
            if is_passing(error):
                raise
            log.warning("run %s is recorded, but not registered as %r: %s", run, registration.model, error)

    def _fill(self, client: "MlflowClient", begun: "Run", record: RunRecord) -> None:
        """Tell MLflow what belongs to a run; the same again changes nothing."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

        run, moment = begun.info.run_id, begun.info.start_time  # the same in every attempt: points count once
        params = [Param(key, value) for key, value in record.params.items()]
        metrics = [Metric(key, value, moment, 0) for key, value in record.metrics.items()]
        metrics += [Metric(key, x, moment, step) for key, row in record.series.items() for step, x in enumerate(row)]
        while params or metrics:
            client.log_batch(run, metrics=metrics[:_METRICS_PER_CALL], params=params[:_PARAMS_PER_CALL])
            metrics, params = metrics[_METRICS_PER_CALL:], params[_PARAMS_PER_CALL:]
        inputs = [
            DatasetInput(
                Dataset(used.name, used.sha256[:_DIGEST_LENGTH], "local", json.dumps({"uri": used.source})),
                [InputTag("mlflow.data.context", used.context)] if used.context else [],
            )
            for used in record.datasets
        ]
        if inputs:
            client.log_inputs(run, datasets=inputs)
        for path in record.artifacts:
            if path.is_dir():
                client.log_artifacts(run, str(path), artifact_path=path.name)
            else:
                client.log_artifact(run, str(path))

    def _connect(self) -> "tuple[MlflowClient, str]":
        with self._mutex:
            if self._connection is None:
                for library in ("alembic", "mlflow.store.db.utils"):  # a line per migration
                    logging.getLogger(library).setLevel(logging.WARNING)
                from mlflow import MlflowClient

                with exclusive(_home() / "first-use.lock"):  # the migrations of a new file race between processes
                    _make_database(self.uri)
                    client = MlflowClient(tracking_uri=self.uri)
                    known = client.get_experiment_by_name(self.experiment)
                    place = (_home() / "artifacts").as_uri() if self.uri.startswith("sqlite:") else None
                    number = known.experiment_id if known else client.create_experiment(self.experiment, place)
                self._connection = client, number
            return self._connection

    def _keep(self, record: RunRecord) -> Path:
        def text(copies: list[Path]) -> str:
            return record.model_copy(update={"artifacts": copies}).model_dump_json(indent=1)

        return outbox.keep(record.experiment, record.identity, record.artifacts, text)


def deliver_all() -> tuple[list[str], list[Path]]:
    """Send every record that was kept; returns the ids of the runs, and the folders of what is still to be sent."""
    experiments = dict.fromkeys(_read(folder).experiment for folder in outbox.pending())
    sent = [run for experiment in experiments for run in Tracker(experiment).deliver_pending()]
    return sent, outbox.pending()


def _make_database(uri: str) -> None:
    """Make a SQLite file whole or not at all: one that was left in the middle of its migrations cannot be opened."""
    file = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or file.exists():
        return
    from mlflow import MlflowClient

    folder = file.parent / f".draft-{file.name}"
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed here
    folder.mkdir(parents=True)
    MlflowClient(tracking_uri=f"sqlite:///{folder / file.name}").search_experiments(max_results=1)
    (folder / file.name).replace(file)
    shutil.rmtree(folder)


def _read(folder: Path) -> RunRecord:
    return RunRecord.model_validate_json((folder / outbox.RECORD).read_text(encoding="utf-8"))


def connect(uri: str | None = None) -> "MlflowClient":
    """A client of the tracking server that the project uses, for what belongs to no experiment."""
    from mlflow import MlflowClient

    address = Tracker("", uri).uri
    with exclusive(_home() / "first-use.lock"):
        _make_database(address)
        return MlflowClient(tracking_uri=address)


def _home() -> Path:
    return state_directory() / ".mlflow"


def _key(text: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", text)  # what MLflow allows in a name


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{key}.")
        else:
            yield _key(key), redact(str(value))[:_PARAM_LENGTH]
