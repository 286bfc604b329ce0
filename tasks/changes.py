"""Is there anything new? What a plan depends on, told without a download, beside what it was at the last success."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from prefect import task
from pydantic import BaseModel, ConfigDict, ValidationError

from mergeline.plan_surroundings import is_registered
from tasks._env import state_directory
from tasks.code_version import code_version
from tasks.policy import is_transient
from tasks.secrets import revealed

if TYPE_CHECKING:
    from mergeline.plan import Checkpoint, Plan
    from tasks.recording import Outcome

R = TypeVar("R", bound="Outcome")

# What these say changes no byte of the result.
WITHOUT_EFFECT = {
    *("output", "runner", "workers", "range_size", "download", "tracking", "notify", "search", "compare", "promotion"),
}


class Success(BaseModel):
    """What a run of a plan was made of, and the lineage that it published."""

    model_config = ConfigDict(frozen=True)

    inputs: dict[str, str]
    lineage: str
    flow_run: str
    at: datetime


class News(BaseModel):
    """What differs from the last success. inputs: None where a source could not be asked: then all counts as new."""

    model_config = ConfigDict(frozen=True)

    changed: list[str]
    inputs: dict[str, str] | None = None
    last: Success | None = None

    def __bool__(self) -> bool:
        return bool(self.changed)

    @property
    def summary(self) -> str:
        """One sentence."""
        if self.changed:
            return f"new: {', '.join(self.changed)}"
        since = f"{self.last.at:%Y-%m-%d %H:%M} UTC (flow run {self.last.flow_run})" if self.last else ""
        return f"nothing new since {since}"


def look_for_news(plan: Plan) -> News:
    """Compare what the plan depends on with what it was when a run of it last succeeded.

    A checkpoint whose source does not say which version it has counts as new. Raises InputError for a source that is
    not there, and lost connections as they come.
    """
    inputs, last = fingerprint(plan), last_success(plan)
    if last is None:
        return News(changed=["no run has succeeded yet"], inputs=inputs)
    if published_lineage(plan) != last.lineage:
        return News(changed=[f"{plan.output} has not what the last run published"], inputs=inputs, last=last)
    names = [*inputs, *(name for name in last.inputs if name not in inputs)]
    return News(changed=[name for name in names if inputs.get(name) != last.inputs.get(name)], inputs=inputs, last=last)


@task(
    name="check-inputs",
    retries=3,
    retry_delay_seconds=[1, 5, 30],
    retry_condition_fn=lambda _task, _run, state: isinstance(state.data, Exception) and is_transient(state.data),
)
def check_inputs(plan: Plan) -> News:
    """`look_for_news`, where Prefect's pages show it; a source that is lost for a moment is asked again."""
    from tasks.logs import tell

    news = look_for_news(plan)
    tell("inputs checked", name=plan.name, found=news.summary)
    return news


def nothing_to_do(plan: Plan, news: News) -> bool:
    """Whether nothing is new. Records that MLflow did not take when something was are then delivered."""
    from tasks.tracking import Tracker

    if not news and plan.tracking.enabled:
        Tracker(plan.tracking.experiment).deliver_pending()
    return not news


def remembered(run: Callable[[Plan], R], plan: Plan, inputs: dict[str, str] | None = None) -> R:
    """Run the plan, and remember what it depended on before it began; a run that fails is not remembered."""
    if inputs is None:
        inputs = fingerprint_or_none(plan)
    outcome = run(plan)
    if inputs is not None:
        _remember(plan, inputs, outcome.recorded.flow_run)
    return outcome


def fingerprint(plan: Plan) -> dict[str, str]:
    """Everything that the result depends on by name: the plan, the code, each checkpoint and each file of data."""
    from tasks.architecture import rule_version
    from tasks.job import Job

    job = Job(plan)
    said = plan.model_dump_json(exclude=WITHOUT_EFFECT)
    inputs = {"plan": hashlib.sha256(said.encode()).hexdigest(), "code": code_version("flows.merge_and_evaluate")}
    if plan.architecture:
        inputs["architecture"] = f"{job.architecture.code} {rule_version(plan.architecture.symmetry)}"
    inputs |= {name: ref.sha256 for name, ref in job.datasets.items()}
    return inputs | {f"checkpoint {spec.name}": checkpoint_version(spec) for spec in plan.checkpoints}


def checkpoint_version(spec: Checkpoint) -> str:
    """The digest, commit, ETag or date of a checkpoint; another one on every call where its source tells none."""
    from mergeline.checkpoints.versions import stated_version
    from tasks.checkpoints import resolved

    scheme = spec.uri.partition("://")[0].lower() if "://" in spec.uri else "file"
    if spec.sha256 or scheme == "file" or is_registered(spec.uri):
        return resolved(spec)[1]
    return stated_version(revealed(spec.uri)) or uuid4().hex


def last_success(plan: Plan) -> Success | None:
    """What the last run remembered that published where this plan publishes."""
    try:
        return Success.model_validate_json(_record(plan).read_text())
    except (OSError, ValidationError):
        return None


def published_lineage(plan: Plan) -> str | None:
    """Digest of the lineage that lies in the plan's folder; None where it, or a file that it names, is not there."""
    try:
        lineage = (plan.output / "lineage.json").read_bytes()
        whole = all((plan.output / name).is_file() for name in json.loads(lineage)["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return hashlib.sha256(lineage).hexdigest() if whole else None


def fingerprint_or_none(plan: Plan) -> dict[str, str] | None:
    """`fingerprint`; None where a source cannot be asked: the run itself will say what is wrong with it."""
    try:
        return fingerprint(plan)
    except Exception:
        return None


def _remember(plan: Plan, inputs: dict[str, str], flow_run: str) -> None:
    lineage = published_lineage(plan)
    if lineage is None:
        return
    success = Success(inputs=inputs, lineage=lineage, flow_run=flow_run, at=datetime.now(UTC))
    record = _record(plan)
    record.parent.mkdir(parents=True, exist_ok=True)
    draft = record.with_name(f".{record.name}.{uuid4().hex}")
    draft.write_text(success.model_dump_json(indent=1) + "\n")
    draft.replace(record)


def _record(plan: Plan) -> Path:
    key = hashlib.sha256(json.dumps([plan.name, str(plan.output.resolve())]).encode()).hexdigest()
    return state_directory() / ".links" / f"success-{key[:32]}.json"
