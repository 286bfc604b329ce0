"""The record of runs: MLflow, by explicit run ids, imported on first use. Tracking warns where it fails; runs go on.

A record that MLflow did not take is kept in MERGELINE_STATE/.mlflow/pending, with copies of its files, and sent by
`Tracker.deliver_pending`. The default store is a SQLite file; its artifact addresses are absolute, so a project that is
moved keeps its numbers but loses the links to files logged before.
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
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from mergeline.redaction import redact
from tasks._env import state_directory
from tasks.locks import exclusive

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

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
    """All that is told about one run. Times are seconds since the epoch."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    name: str
    params: dict[str, str]
    metrics: dict[str, float]
    series: dict[str, list[float]] = {}
    artifacts: list[Path]
    datasets: list[DatasetUse]
    tags: dict[str, str]
    started: float
    ended: float
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
    ) -> str | None:
        """Write one finished run and return its id; None (and a warning) where that failed.

        params: may be nested, {"merge": {"method": …}} becomes "merge.method". series: metrics over steps 0, 1, ….
        artifacts: files and folders, logged under their own names. parent: the id of the run that this one is part of.
        registration: what is registered with the run; one of its artifacts is the folder `model`.
        """
        now = time.time()
        try:
            record = RunRecord(
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
        except (TypeError, ValueError) as error:
            log.warning("run %r cannot be recorded: %s", name, error)
            return None
        try:
            return self._send(record)
        except Exception as error:  # whatever it is, a merge of hours is worth more than its record
            log.warning("run %r was not recorded in MLflow at %s: %s", name, self.uri, error)
            self._keep(record)
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
            record = RunRecord(
                name=name, params=pairs, metrics={}, artifacts=[], datasets=[], tags={}, started=0, ended=0
            )
            self._fill(client, begun.info.run_id, record)  # again, too: it may have been killed before this
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
        """Send the records of this experiment that were kept; returns the ids of the runs. Stops at a failure."""
        sent: list[str] = []
        with exclusive(_home() / "pending.lock"):
            for file in sorted(self._pending().glob("[!.]*/record.json")):
                try:
                    sent.append(self._send(RunRecord.model_validate_json(file.read_text(encoding="utf-8"))))
                except Exception as error:
                    log.warning("kept run %s could not be delivered to %s: %s", file.parent.name, self.uri, error)
                    break
                shutil.rmtree(file.parent)
        return sent

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
        client, experiment = self._connect()
        run = client.create_run(experiment, int(record.started * 1000), record.tags, record.name).info.run_id
        try:
            self._fill(client, run, record)
            client.set_terminated(run, "FINISHED", int(record.ended * 1000))
            if record.registration:
                self._register(client, run, record.registration)
        except BaseException:
            with suppress(Exception):
                client.delete_run(run)  # half a record misleads
            raise
        return run

    def _register(self, client: "MlflowClient", run: str, registration: Registration) -> None:
        """Register a run's model. What cannot be mended by sending the record again later is a warning."""
        from tasks.registry import is_passing, register

        try:
            register(client, run, registration)
        except Exception as error:
            if is_passing(error):
                raise
            log.warning("run %s is recorded, but not registered as %r: %s", run, registration.model, error)

    def _fill(self, client: "MlflowClient", run: str, record: RunRecord) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

        ended = int(record.ended * 1000)
        params = [Param(key, value) for key, value in record.params.items()]
        metrics = [Metric(key, value, ended, 0) for key, value in record.metrics.items()]
        metrics += [Metric(key, x, ended, step) for key, row in record.series.items() for step, x in enumerate(row)]
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
                    client = MlflowClient(tracking_uri=self.uri)
                    known = client.get_experiment_by_name(self.experiment)
                    place = (_home() / "artifacts").as_uri() if self.uri.startswith("sqlite:") else None
                    number = known.experiment_id if known else client.create_experiment(self.experiment, place)
                self._connection = client, number
            return self._connection

    def _pending(self) -> Path:
        return _home() / "pending" / _key(self.experiment).replace("/", "_")

    def _keep(self, record: RunRecord) -> None:
        """Put a record aside with copies of its files, which the next run would overwrite."""
        name = uuid.uuid4().hex
        draft, folder = self._pending() / f".{name}", self._pending() / name
        try:
            kept = []
            for number, path in enumerate(record.artifacts):
                copy = folder / str(number) / path.name
                target = draft / str(number) / path.name
                target.parent.mkdir(parents=True)
                (shutil.copytree if path.is_dir() else shutil.copyfile)(path, target)
                kept.append(copy)
            draft.mkdir(parents=True, exist_ok=True)
            text = record.model_copy(update={"artifacts": kept}).model_dump_json(indent=1)
            (draft / "record.json").write_text(text, encoding="utf-8")
            draft.rename(folder)
        except OSError as error:
            log.warning("nor could it be kept for later: %s", error)
        else:
            log.warning("it is kept for later in %s", folder)


def connect(uri: str | None = None) -> "MlflowClient":
    """A client of the tracking server that the project uses, for what belongs to no experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=Tracker("", uri).uri)
    with exclusive(_home() / "first-use.lock"):
        client.get_experiment("0")  # makes the tables of a new file; its answer does not matter
    return client


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
