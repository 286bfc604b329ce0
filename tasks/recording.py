"""Task: record a run in MLflow. Never cached; a server that is down costs a warning, not the run."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from pydantic import BaseModel, ConfigDict

from mergeline.plan import Plan
from mergeline.plan_surroundings import is_registered
from mergeline.redaction import redact
from mergeline.report.result import Comparison
from tasks._env import state_directory
from tasks.measuring import forget, stage_metrics
from tasks.progress import StageCount
from tasks.publishing import REPORT, Made, Report, facts, published_files
from tasks.registered_model import published_apart, registration, write_model

if TYPE_CHECKING:
    from mergeline.report.html import StageTiming

log = logging.getLogger(__name__)

LARGEST = 1 << 30  # bytes of a file that is copied into MLflow: larger weights are named by their digests alone


class Recorded(BaseModel):
    """Where a run can be looked at: ids in Prefect and MLflow, and the path of its page in MLflow's pages."""

    model_config = ConfigDict(frozen=True)

    flow_run: str
    mlflow_run: str | None
    mlflow_page: str | None


class Part(BaseModel):
    """What a run is within a comparison. whole: the identity of the record of that; name, repeat: of the cell."""

    model_config = ConfigDict(frozen=True)

    whole: str
    name: str
    repeat: str = ""

    @property
    def label(self) -> str:
        """The name of the run."""
        return ", ".join(filter(None, (self.name, self.repeat)))


@task(name="track")
def record_run(
    plan: Plan, made: Made, comparison: Comparison, report: Report, stages: StageCount, part: Part | None = None
) -> Recorded:
    """Params, scores of every row, what the stages found, digests, and everything that was published.

    The same result in the same part of a comparison is recorded once.
    """
    from prefect.runtime import flow_run

    from tasks.outbox import interrupted_or_new
    from tasks.tracking import DatasetUse, Tracker
    from tasks.versioning import version_tags

    identity = str(flow_run.id)
    took = stage_metrics(identity)
    forget(identity)
    if not plan.tracking.enabled:
        return Recorded(flow_run=identity, mlflow_run=None, mlflow_page=None)
    tracker = Tracker(plan.tracking.experiment)
    tracker.deliver_pending()
    found, exported = facts(made), {kind: program.difference for kind, program in made.exports.items()}
    published = published_files(plan, made, comparison)
    files = [path for path in published if _size(path) <= LARGEST]
    tags = _tags(plan, made, stages, identity) | version_tags(plan, made.model.sha256, published)
    if part:
        tags |= {"mergeline.cell": part.name} | ({"mergeline.repeat": part.repeat} if part.repeat else {})
    aside = tempfile.TemporaryDirectory(dir=state_directory(), prefix=".registered.")
    identified = nullcontext(_within(part, plan, made)) if part else interrupted_or_new(_work(plan, made))
    with identified as record, aside as folder:
        model = _registered(plan, made, Path(folder))
        page = _page_of_run(plan, comparison, report, took, tags, Path(folder))
        files = [page if path.name == page.name else path for path in files]
        run = tracker.record(
            part.label if part else plan.name,
            identity=record,
            part_of=part.whole if part else None,
            params=_params(plan),
            metrics=scores(comparison)
            | {f"matched/{group}": value for group, value in found.matched.items()}
            | {f"balance/{balance}": score for balance, score in found.balances.get("tried", {}).items()}
            | {f"export/{kind}/difference": off for kind, off in exported.items() if off is not None}
            | barriers(made)
            | took,
            series={"objective": found.objective},
            artifacts=[*(path for path in files if path.name not in published_apart(made)), model] if model else files,
            datasets=[DatasetUse(name=name, sha256=ref.sha256, source=name) for name, ref in made.datasets.items()],
            tags=tags,
            registration=registration(plan, made, run_tags=tags, ended=time.time(), largest=LARGEST) if model else None,
        )
    return Recorded(flow_run=identity, mlflow_run=run, mlflow_page=tracker.page(run) if run else None)


def _tags(plan: Plan, made: Made, stages: StageCount, identity: str) -> dict[str, str]:
    tags = {"prefect.flow_run": identity, "mergeline.plan": plan.name, "mergeline.stages": str(stages)}
    for name, ref in made.checkpoints.items():
        tags[f"checkpoint.{name}"] = ref.sha256
        if is_registered(source := str(ref.metadata.get("source", ""))):
            tags[f"checkpoint.{name}.version"] = source
    return tags


def _page_of_run(
    plan: Plan, comparison: Comparison, report: Report, took: dict[str, float], tags: dict[str, str], aside: Path
) -> Path:
    """The report with what is true of this run alone, which the published one must not say: its bytes are versioned."""
    from mergeline.report.html import RunRecord
    from tasks.versioning import COMMIT, DIRTY, MACHINE

    commit = tags.get(COMMIT, "none: not in a git repository")
    shown = {
        "ended": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "commit": f"{commit}, with changes since" if tags.get(DIRTY) == "true" else commit,
        "stages": tags["mergeline.stages"],
        "flow run": tags["prefect.flow_run"],
        **{name: tags[MACHINE + name] for name in ("python", "platform", "processor") if MACHINE + name in tags},
    }
    page = aside / REPORT
    run = RunRecord(facts=shown, timings=_timings(took))
    page.write_text(redact(report.html(plan, comparison, run)), encoding="utf-8")
    return page


def _timings(took: dict[str, float]) -> list[StageTiming]:
    """The metrics of the stages, stage by stage, what took longest first."""
    from mergeline.report.html import StageTiming

    stages = [name.partition("/")[2] for name in took if name.startswith("runs/")]
    found = [
        StageTiming(
            stage=stage,
            runs=int(took[f"runs/{stage}"]),
            cached=int(took[f"cached/{stage}"]),
            **{kind: took.get(f"{kind}/{stage}", 0.0) for kind in ("seconds", "cpu_seconds", "peak_megabytes")},
        )
        for stage in stages
    ]
    return sorted(found, key=lambda timing: (-timing.seconds, timing.stage))


def _registered(plan: Plan, made: Made, aside: Path) -> Path | None:
    """The folder of the model to register; None where the plan registers nothing, or (a warning) it cannot be made."""
    if plan.registry is None:
        return None
    try:
        return write_model(plan, made, aside, LARGEST)
    except Exception as error:  # the merge is done and published
        log.warning("the result is not registered as %r: %s", plan.registry.model, error)
        return None


def _work(plan: Plan, made: Made) -> str:
    """What is recorded: two attempts at the same say the same."""
    return plan.model_dump_json() + made.model_dump_json()


def _within(part: Part, plan: Plan, made: Made) -> str:
    """The identity of a record within another one."""
    return hashlib.sha256((part.model_dump_json() + _work(plan, made)).encode()).hexdigest()[:32]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def scores(comparison: Comparison) -> dict[str, float]:
    """Every score of every row under a name of its own: `merged/mean`, `merged/task/clean-02478`, ..."""
    metrics: dict[str, float] = {}
    for row in comparison.rows:
        metrics |= {f"{row.name}/{name}": score.value for name, score in row.summary.items()}
        metrics |= {f"{row.name}/task/{task}": score.value for task, score in row.tasks.items()}
        metrics |= {f"{row.name}/outside/{task}": score.value for task, score in row.outside.items()}
    for row_name, found in comparison.against_own.items():
        places = {"": found.mean} | {f"/task/{name}": one for name, one in found.tasks.items()}
        for place, one in places.items():
            metrics[f"{row_name}/change{place}"] = one.change
            if one.normalised is not None:
                metrics[f"{row_name}/normalised{place}"] = one.normalised
    return metrics


def barriers(made: Made) -> dict[str, float]:
    """The barriers of the mean loss: `barrier/base-a to base-b/after`."""
    from tasks.landscape import read_landscape

    heights = read_landscape(made.landscape).heights if made.landscape else {}
    return {f"barrier/{name}": height for name, height in heights.items()}


def _params(plan: Plan) -> dict[str, Any]:
    """The plan without its lists of checkpoints, tasks and data, which are tags and inputs of the run."""
    return plan.model_dump(mode="json", include={"name", "architecture", "calibration", "align", "merge", "evaluation"})


class Outcome(BaseModel):
    """What a run comes to: the scores, how much of it came from the cache, and where it is recorded."""

    model_config = ConfigDict(frozen=True)

    comparison: Comparison
    stages: StageCount
    recorded: Recorded

    @property
    def facts(self) -> dict[str, Any]:
        """In a few words, for logs and messages."""
        measured = {}
        if self.comparison.rows:
            summary = self.comparison.result.summary
            measured = {name: round(score.value, 4) for name, score in summary.items()}
        return {
            "stages": self.stages.total,
            "cached": self.stages.cached,
            "mlflow_run": self.recorded.mlflow_run,
            **measured,
        }
