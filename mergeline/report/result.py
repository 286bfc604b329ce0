"""What a run found out: the scores of every row of the comparison. Written as comparison.json and metrics.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field

from mergeline.comparison import CONTROLS, RESULT, UNCALIBRATED, metric_of_mean
from mergeline.errors import InputError
from mergeline.evaluation.relative import Relative, mean_relative, relative
from mergeline.evaluation.score import Score
from mergeline.plan import Plan


class RowScores(BaseModel):
    """The scores of one row: each task, their mean, and joint accuracy over the classes of all tasks.

    joint: None where the tasks are not all classifications of one label space.
    outside: tasks that no model of the plan was trained for; they count in neither the mean nor joint accuracy.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    label: str
    tasks: dict[str, Score]
    mean: Score
    joint: Score | None
    outside: dict[str, Score] = {}

    @property
    def summary(self) -> dict[str, Score]:
        """The scores of all tasks together: "mean", and "joint" where there is such."""
        return {"mean": self.mean} | ({"joint": self.joint} if self.joint else {})

    def by(self, metric: Literal["mean", "joint"]) -> Score:
        """What a row is ranked by. Raises InputError where there is no joint accuracy."""
        if metric not in self.summary:
            raise InputError("there is no joint accuracy: the tasks are not all classifications of one label space")
        return self.summary[metric]

    def numbers(self) -> dict[str, object]:
        """Mean, joint accuracy and tasks as plain numbers: DVC shows and compares them. Shares are in [0, 1]."""
        numbers: dict[str, object] = {}
        for name, score in self.summary.items():
            numbers |= {name: score.value, f"{name}_standard_error": score.standard_error}
        return numbers | {"tasks": {name: score.value for name, score in self.tasks.items()}}


class RelativeScores(BaseModel):
    """One row beside the tasks' own models: each task that has one measured, and the mean over these."""

    model_config = ConfigDict(frozen=True)

    tasks: dict[str, Relative]
    mean: Relative


class Comparison(BaseModel):
    """All rows of a run; the last one is the merged model. None where there were no tasks to measure it on.

    specialists: task -> the checkpoint that was trained for it. metric: of the tasks; "mean": they have several.
    """

    model_config = ConfigDict(frozen=True)

    plan: str
    rows: list[RowScores]
    specialists: dict[str, str] = {}
    metric: Annotated[str, Field(exclude_if=lambda metric: metric == "accuracy")] = "accuracy"

    @property
    def result(self) -> RowScores:
        """The row of the plan's own merge."""
        return next(row for row in self.rows if row.name == RESULT)

    @property
    def beside_calibrated(self) -> list[RowScores]:
        """What tells how much a calibration did for the result: the merge without it, and its controls."""
        named = {row.name: row for row in self.rows}
        return [named[name] for name in (UNCALIBRATED, *CONTROLS) if name in named]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def own(self) -> dict[str, Score]:
        """Each task's score by its own model, where that is a row."""
        return own_scores(self.rows, self.specialists)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def against_own(self) -> dict[str, RelativeScores]:
        """Every row beside the tasks' own models; nothing where none of these is a row."""
        own = own_scores(self.rows, self.specialists)
        found = {
            row.name: {task: relative(score, own[task]) for task, score in row.tasks.items() if task in own}
            for row in self.rows
        }
        return {
            name: RelativeScores(tasks=tasks, mean=mean_relative(list(tasks.values())))
            for name, tasks in found.items()
            if tasks
        }

    def metrics(self) -> dict[str, object]:
        """The scores of the result as plain numbers, for metrics.json."""
        return self.result.numbers() | self._more_metrics() if self.rows else {}

    def _more_metrics(self) -> dict[str, object]:
        """What only some plans have: the tasks' own models, and tasks outside."""
        more: dict[str, object] = {}
        if found := self.against_own.get(RESULT):
            more["change"] = found.mean.change
            more["change_standard_error"] = found.mean.change_error
            more["normalised"] = found.mean.normalised
            more["normalised_standard_error"] = found.mean.normalised_error
            more["tasks_change"] = {name: one.change for name, one in found.tasks.items()}
            more["tasks_normalised"] = {name: one.normalised for name, one in found.tasks.items()}
        if self.result.outside:
            more["outside"] = {name: score.value for name, score in self.result.outside.items()}
        return more


def comparison_of(plan: Plan, rows: list[RowScores]) -> Comparison:
    """The rows of a plan, the last one its own merge; none where it has no tasks."""
    metric = metric_of_mean(plan) if rows else "accuracy"
    return Comparison(plan=plan.name, rows=rows, specialists=plan.specialists, metric=metric)


def own_scores(rows: Sequence[RowScores], specialists: Mapping[str, str]) -> dict[str, Score]:
    """Each task's score by the checkpoint that was trained for it, where that is a row.

    It is the better one of that checkpoint as trained and with its normalisation statistics reset.
    """
    own: dict[str, Score] = {}
    for task, checkpoint in specialists.items():
        named = (row for row in rows if row.name in (checkpoint, f"{checkpoint}-reset"))
        found = [row.tasks[task] for row in named if task in row.tasks]
        if found:
            own[task] = max(found, key=lambda score: score.goodness)
    return own


def read_comparison(path: Path) -> Comparison:
    """Read comparison.json. Raises InputError where it is missing or something else."""
    try:
        return Comparison.model_validate(json.loads(path.read_text()))
    except FileNotFoundError as fault:
        raise InputError(f"{path} is missing: run `make merge` first") from fault
    except (ValueError, ValidationError) as fault:
        raise InputError(f"{path} is not a comparison that a run has published; run `make merge` again") from fault
