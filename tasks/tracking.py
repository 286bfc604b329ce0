"""The record of runs: MLflow, by explicit run ids, imported on first use. Tracking warns where it fails; runs go on.

A record is put down in the outbox (`tasks/outbox.py`) before it is sent, and removed when MLflow has it: what a crash
or an outage interrupts is delivered later, by the next run or `flows/sync_tracking.py`. Its identity is a tag of the
run, so nothing is written twice, not even where an answer was lost. The default store is a SQLite file; its artifact
addresses are absolute, so a project that is moved keeps its numbers but loses the links to files logged before.
"""

import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mergeline.errors import InputError
from mergeline.redaction import redact
from tasks import outbox
from tasks._env import state_directory
from tasks.locks import exclusive
from tasks.run_record import BEGUN, DatasetUse, Registration, RunRecord, flat_params, metric_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["DatasetUse", "Registration", "Tracker", "connect", "deliver_all"]

log = logging.getLogger(__name__)

IDENTITY = "mergeline.record"  # tag
_PARAMS_PER_CALL, _METRICS_PER_CALL, _DIGEST_LENGTH = 100, 1000, 36  # limits of MLflow


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
        started: float | None = None,
        registration: Registration | None = None,
        identity: str | None = None,
        part_of: str | None = None,
        phase: Literal["whole", "begun", "ended"] = "whole",
        later: bool = False,
    ) -> str | None:
        """Write one run and return its id; None (and a warning) where that failed: it is then kept for later.

        params: may be nested, {"merge": {"method": …}} becomes "merge.method". series: metrics over steps 0, 1, ….
        artifacts: files and folders, logged under their own names.
        registration: what is registered with the run; one of its artifacts is the folder `model`.
        identity: a record that was begun under the same one is gone on with (default: a new one).
        part_of: the identity of the run that this one is part of; it need not be in MLflow yet. phase: see `RunRecord`.
        later: only keep it (unless it is kept already), where MLflow was just found not to answer.
        """
        now = time.time()
        try:
            record = RunRecord(
                identity=identity or uuid.uuid4().hex,
                experiment=self.experiment,
                name=name,
                params=dict(flat_params(params or {})),
                metrics={metric_name(key): float(value) for key, value in (metrics or {}).items()},
                series={metric_name(key): [float(value) for value in values] for key, values in (series or {}).items()},
                artifacts=list(artifacts),
                datasets=list(datasets),
                tags={key: redact(tag) for key, tag in (tags or {}).items()},
                started=now if started is None else started,
                ended=now,
                registration=registration,
                phase=phase,
                part_of=part_of or "",
            )
            for path in record.artifacts:
                path.stat()
        except (TypeError, ValueError, OSError) as error:
            log.warning("run %r cannot be recorded: %s", name, error)
            return None
        return self._put(record, later=later)

    def _put(self, record: RunRecord, *, later: bool) -> str | None:
        """Keep a record, and send it unless that is for later."""
        if later and outbox.waits(record.experiment, record.key):
            return None
        try:
            folder = self._keep(record)
        except OSError as error:
            log.warning("run %r cannot be kept for later, should MLflow be down: %s", record.name, error)
            folder = None
        if later and folder is not None:
            return None
        try:
            run = self._send(record) if folder is None else self._deliver(folder)
            return run or self._run_of(record.identity)  # another process may have delivered it meanwhile
        except Exception as error:  # whatever it is, a merge of hours is worth more than its record
            log.warning("run %r was not recorded in MLflow at %s: %s", record.name, self.uri, error)
            if folder is not None:
                log.warning("it is kept for later in %s", folder)
            return None

    def parts(self, identity: str, tag: str) -> set[str] | None:
        """The values of a tag among the runs that are parts of another; None (and a warning) where that failed."""
        try:
            parts = self._runs("mlflow.parentRunId", self._run_of(identity) or "none")
            return {run.data.tags[tag] for run in parts if tag in run.data.tags}
        except Exception as error:
            log.warning("the parts of run %s were not found in MLflow at %s: %s", identity, self.uri, error)
            return None

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

        One that MLflow refuses does not hold up the others; where MLflow does not answer at all, it stops. What begins
        a run goes first: others may be parts of it.
        """
        sent: list[str] = []
        for folder in sorted(outbox.pending(self.experiment), key=lambda folder: not folder.name.endswith(BEGUN)):
            try:
                run = self._deliver(folder)
            except Exception as error:
                log.warning("kept run %s could not be delivered to %s: %s", folder.name, self.uri, error)
                if not self.answers():
                    break
            else:
                sent += [run] if run else []
        return list(dict.fromkeys(sent))

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

    def answers(self) -> bool:
        """Whether MLflow can be asked now."""
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
        tags = record.tags | {IDENTITY: record.identity}
        if record.part_of:
            tags["mlflow.parentRunId"] = self._whole_of(record.part_of)
        known = next(self._runs(IDENTITY, record.identity), None)
        run = known or client.create_run(experiment, int(record.started * 1000), tags, record.name)
        number = run.info.run_id
        for name, value in tags.items():
            if run.data.tags.get(name) != value:  # of an earlier attempt
                client.set_tag(number, name, value)
        if run.info.status == "FINISHED" and record.phase == "whole":
            return str(number)
        self._fill(client, run, record)
        if record.registration:
            self._register(client, number, record.registration)
        if record.phase != "begun":
            client.set_terminated(number, "FINISHED", int(record.ended * 1000))
        elif run.info.status != "RUNNING" and int(record.started * 1000) >= (run.info.end_time or 0):
            client.update_run(number, "RUNNING")  # again; it did not end after this was written
        return str(number)

    def _whole_of(self, identity: str) -> str:
        run = self._run_of(identity)
        if run is None:
            raise LookupError(f"the run that it is part of (record {identity}) is not in MLflow")
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

    def _fill(self, client: "MlflowClient", begun: "Run", record: RunRecord) -> None:
        """Tell MLflow what belongs to a run; the same again changes nothing."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

        run = begun.info.run_id
        params = [Param(key, value) for key, value in record.params.items()]
        # the same moment in every attempt: points count once; of a run that has more to tell later the latest count
        moment = int(record.ended * 1000) if record.phase == "ended" else begun.info.start_time
        metrics = [Metric(key, value, moment, 0) for key, value in record.metrics.items()]
        for key, row in record.series.items():
            told = {point.step for point in client.get_metric_history(run, key)} if record.phase == "ended" else set()
            metrics += [Metric(key, x, moment, step) for step, x in enumerate(row) if step not in told]
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
                with exclusive(_home() / "first-use.lock"):  # the migrations of a new file race between processes
                    client = _client(self.uri)
                    known = client.get_experiment_by_name(self.experiment)
                    place = (_home() / "artifacts").as_uri() if self.uri.startswith("sqlite:") else None
                    number = known.experiment_id if known else client.create_experiment(self.experiment, place)
                self._connection = client, number
            return self._connection

    def _keep(self, record: RunRecord) -> Path:
        def text(copies: list[Path]) -> str:
            return record.model_copy(update={"artifacts": copies}).model_dump_json(indent=1)

        return outbox.keep(record.experiment, record.key, record.artifacts, text)


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
    """A client of the tracking server that the project uses, for what belongs to no experiment.

    InputError where its address cannot be taken apart.
    """
    address = Tracker("", uri).uri
    with exclusive(_home() / "first-use.lock"):
        return _client(address)


def _client(uri: str) -> "MlflowClient":
    from mlflow import MlflowClient

    try:
        _make_database(uri)
        return MlflowClient(tracking_uri=uri)
    except ValueError:  # its text may quote a password that stands in the wrong place
        raise InputError(
            "MLFLOW_TRACKING_URI: is no address that can be taken apart; write http://host:port or sqlite:///file"
        ) from None


def _home() -> Path:
    return state_directory() / ".mlflow"
