"""Runs found again in MLflow: by their id, or by what they published."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from mergeline.errors import InputError
from mergeline.redaction import redact
from tasks.registry import is_passing, told
from tasks.tracking import connect
from tasks.versioning import CODE, COMMIT, DIRTY, MD5, MODEL

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


class RecordedRun(BaseModel):
    """One run as MLflow has it: its tags, and the plan, inputs and digests of its lineage.json."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    tags: dict[str, str]
    lineage: dict[str, Any]

    @property
    def commit(self) -> str:
        """The commit that the run was made from."""
        return self.tags[COMMIT]


def recorded_run(run_id: str) -> RecordedRun:
    """A run with all that it takes to make it again.

    InputError that says what MLflow lacks of it; ConnectionError where MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    with told(_uri()):
        client = connect(_uri())
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if is_passing(error):
                raise
            raise InputError(
                f"MLflow at {_uri()} has no run {run_id}; its runs: python -m flows.rebuild --of data/merged"
            ) from error
    tags = dict(run.data.tags)
    if missing := sorted({COMMIT, CODE, MODEL} - tags.keys()):
        what = "it was made outside a git repository" if missing == [COMMIT] else "another program recorded it"
        raise InputError(f"run {run_id} does not say {', '.join(missing)}: {what}, so it cannot be made again")
    lineage = _lineage(client, run)
    return RecordedRun(run_id=run_id, tags=tags, lineage=lineage)


def _lineage(client: MlflowClient, run: Run) -> dict[str, Any]:
    run_id, name = run.info.run_id, "lineage.json"
    with TemporaryDirectory() as folder, told(_uri()):
        try:
            if not any(file.path == name for file in client.list_artifacts(run_id)):
                raise FileNotFoundError(name)
            return dict(json.loads(Path(client.download_artifacts(run_id, name, folder)).read_text()))
        except (FileNotFoundError, NotADirectoryError, TypeError, ValueError) as error:
            raise InputError(
                f"run {run_id} has no {name} at {redact(str(run.info.artifact_uri))}, so its plan is not known; where "
                "the project was moved, artifacts lie where it was"
            ) from error


def runs_that_published(name: str, md5: str) -> list[str]:
    """One line for each run that published a file or folder of that name and digest, the latest first.

    ConnectionError where MLflow does not answer.
    """
    with told(_uri()):
        client = connect(_uri())
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        wanted = f"tags.`{MD5}{name}` = '{md5}'"
        return [_line(run) for run in client.search_runs(experiments, wanted, order_by=["attributes.start_time DESC"])]


def _line(run: Run) -> str:
    tags = run.data.tags
    when = datetime.fromtimestamp(run.info.start_time / 1000, UTC).strftime("%Y-%m-%d %H:%M")
    commit = tags.get(COMMIT, "none") + (" (with changes)" if tags.get(DIRTY) == "true" else "")
    plan = f"{tags.get('mergeline.plan', run.info.run_name)} {tags.get('mergeline.plan_sha256', '')[:12]}"
    return f"run {run.info.run_id}   commit {commit}   plan {plan}   {when} UTC"


def _uri() -> str:
    return os.environ["MLFLOW_TRACKING_URI"]
