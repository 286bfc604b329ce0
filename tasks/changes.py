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

from mergeline.plan import WITHOUT_EFFECT
from mergeline.plan_surroundings import is_registered
from tasks._env import state_directory
from tasks.code_version import code_version
from tasks.policy import patiently
from tasks.published import PublishedFile, differences, is_of, published_now
from tasks.secrets import revealed

if TYPE_CHECKING:
    from mergeline.plan import Checkpoint, Plan
    from tasks.recording import Outcome

R = TypeVar("R", bound="Outcome")

NAMED = 3  # files that are no more as they were published, in one sentence


class Success(BaseModel):
    """What a run of a plan was made of, and every file that it published."""

    model_config = ConfigDict(frozen=True)

    inputs: dict[str, str]
    published: dict[str, PublishedFile]
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

    A checkpoint whose source does not say which version it has counts as new; a source that is lost for a moment is
    asked again. Raises InputError for a source that is not there, and connections that stay lost as they come.
    """
    inputs, last = patiently(lambda: fingerprint(plan), f"the check of the inputs of {plan.name}"), last_success(plan)
    if last is None:
        return News(changed=["no run has succeeded yet"], inputs=inputs)
    if other := differences(plan.output, last.published):
        said = ", ".join(other[:NAMED]) + (f" and {len(other) - NAMED} more" if len(other) > NAMED else "")
        why = f"{plan.output} has not what the last run published ({said})"
        return News(changed=[why], inputs=inputs, last=last)
    names = [*inputs, *(name for name in last.inputs if name not in inputs)]
    return News(changed=[name for name in names if inputs.get(name) != last.inputs.get(name)], inputs=inputs, last=last)


@task(name="check-inputs")
def check_inputs(plan: Plan) -> News:
    """`look_for_news`, where Prefect's pages show it."""
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
    said = plan.model_dump_json(exclude=set(WITHOUT_EFFECT - {"registry"}))  # what is to be registered is to be run
    inputs = {"plan": hashlib.sha256(said.encode()).hexdigest(), "code": code_version("flows.merge_and_evaluate")}
    if plan.architecture:
        inputs["architecture"] = f"{job.architecture.code} {rule_version(plan.architecture.symmetry)}"
    inputs |= {f"the function of task {name}": code for name, code in job.judges.items()}
    inputs |= {name: ref.sha256 for name, ref in job.datasets.items()}
    return inputs | {f"checkpoint {spec.name}": checkpoint_version(spec) for spec in plan.checkpoints}


def checkpoint_version(spec: Checkpoint) -> str:
    """The digest, commit, ETag or date of a checkpoint; another one on every call where its source tells none."""
    from mergeline.checkpoints.versions import stated_version
    from tasks.checkpoints import source_version
    from tasks.registry import locate

    scheme = spec.uri.partition("://")[0].lower() if "://" in spec.uri else "file"
    if spec.sha256 is None and is_registered(spec.uri):
        return locate(spec.uri).identity
    if spec.sha256 or scheme == "file":
        return source_version(spec)
    return stated_version(revealed(spec.uri)) or uuid4().hex


def last_success(plan: Plan) -> Success | None:
    """What the last run remembered that published where this plan publishes."""
    try:
        return Success.model_validate_json(_record(plan).read_text())
    except (OSError, ValidationError):
        return None


def fingerprint_or_none(plan: Plan) -> dict[str, str] | None:
    """`fingerprint`; None where a source cannot be asked: the run itself will say what is wrong with it."""
    try:
        return fingerprint(plan)
    except Exception:
        return None


def _remember(plan: Plan, inputs: dict[str, str], flow_run: str) -> None:
    published = published_now(plan)
    if published is None or not is_of(plan):  # another run has published over it since
        return
    success = Success(inputs=inputs, published=published, flow_run=flow_run, at=datetime.now(UTC))
    record = _record(plan)
    record.parent.mkdir(parents=True, exist_ok=True)
    draft = record.with_name(f".{record.name}.{uuid4().hex}")
    draft.write_text(success.model_dump_json(indent=1) + "\n")
    draft.replace(record)


def _record(plan: Plan) -> Path:
    key = hashlib.sha256(json.dumps([plan.name, str(plan.output.resolve())]).encode()).hexdigest()
    return state_directory() / ".links" / f"success-{key[:32]}.json"
