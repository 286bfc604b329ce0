"""Task: record a run in MLflow. Never cached; a server that is down costs a warning, not the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import task
from pydantic import BaseModel, ConfigDict

from mergeline.plan import Plan
from mergeline.report.result import Comparison
from tasks.policy import stage_seconds
from tasks.progress import StageCount
from tasks.publishing import Made, facts, published_files

LARGEST = 1 << 30  # bytes of a file that is copied into MLflow: larger weights are named by their digests alone


class Recorded(BaseModel):
    """Where a run can be looked at: ids in Prefect and MLflow, and the path of its page in MLflow's pages."""

    model_config = ConfigDict(frozen=True)

    flow_run: str
    mlflow_run: str | None
    mlflow_page: str | None


@task(name="track")
def record_run(plan: Plan, made: Made, comparison: Comparison, stages: StageCount) -> Recorded:
    """Params, scores of every row, what the stages found, digests, and everything that was published."""
    from prefect.runtime import flow_run

    from tasks.outbox import interrupted_or_new
    from tasks.tracking import DatasetUse, Tracker

    identity = str(flow_run.id)
    if not plan.tracking.enabled:
        return Recorded(flow_run=identity, mlflow_run=None, mlflow_page=None)
    tracker = Tracker(plan.tracking.experiment)
    tracker.deliver_pending()
    found = facts(made)
    tags = {"prefect.flow_run": identity, "mergeline.plan": plan.name, "mergeline.stages": str(stages)}
    tags |= {f"checkpoint.{name}": ref.sha256 for name, ref in made.checkpoints.items()}
    with interrupted_or_new(_work(plan, made)) as record:
        run = tracker.record(
            plan.name,
            identity=record,
            params=_params(plan),
            metrics=scores(comparison)
            | {f"matched/{group}": value for group, value in found.matched.items()}
            | {f"balance/{balance}": score for balance, score in found.balances.get("tried", {}).items()}
            | {f"seconds/{name}": value for name, value in stage_seconds(identity).items()},
            series={"objective": found.objective},
            artifacts=[path for path in published_files(plan.output, made, comparison) if _size(path) <= LARGEST],
            datasets=[DatasetUse(name=name, sha256=ref.sha256, source=name) for name, ref in made.datasets.items()],
            tags=tags,
        )
    return Recorded(flow_run=identity, mlflow_run=run, mlflow_page=tracker.page(run) if run else None)


def _work(plan: Plan, made: Made) -> str:
    """What is recorded: two attempts at the same say the same."""
    return plan.model_dump_json() + made.model_dump_json()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def scores(comparison: Comparison) -> dict[str, float]:
    """Every score of every row under a name of its own: `merged/mean`, `merged/task/clean-02478`, ..."""
    metrics: dict[str, float] = {}
    for row in comparison.rows:
        metrics[f"{row.name}/mean"] = row.mean.value
        metrics[f"{row.name}/joint"] = row.joint.value
        metrics |= {f"{row.name}/task/{task}": score.value for task, score in row.tasks.items()}
    return metrics


def _params(plan: Plan) -> dict[str, Any]:
    """The plan without its lists of checkpoints, tasks and data, which are tags and inputs of the run."""
    return plan.model_dump(mode="json", include={"name", "architecture", "calibration", "align", "merge", "evaluation"})


class Outcome(BaseModel):
    """What a run comes to: the scores, how much of it came from the cache, and where it is recorded."""

    model_config = ConfigDict(frozen=True)

    comparison: Comparison
    stages: StageCount
    recorded: Recorded
