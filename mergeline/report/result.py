"""What a run found out: the scores of every row of the comparison. Written as comparison.json and metrics.json."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mergeline.comparison import RESULT
from mergeline.errors import InputError
from mergeline.evaluation.score import Score


class RowScores(BaseModel):
    """The scores of one row: each task, their mean, and joint accuracy over the classes of all tasks."""

    model_config = ConfigDict(frozen=True)

    name: str
    label: str
    tasks: dict[str, Score]
    mean: Score
    joint: Score


class Comparison(BaseModel):
    """All rows of a run; the last one is the merged model. None where there were no tasks to measure it on."""

    model_config = ConfigDict(frozen=True)

    plan: str
    rows: list[RowScores]

    @property
    def result(self) -> RowScores:
        """The row of the plan's own merge."""
        return next(row for row in self.rows if row.name == RESULT)

    def metrics(self) -> dict[str, object]:
        """The scores of the result as plain numbers, for metrics.json."""
        if not self.rows:
            return {}
        result = self.result
        return {
            "mean": result.mean.value,
            "mean_standard_error": result.mean.standard_error,
            "joint": result.joint.value,
            "joint_standard_error": result.joint.standard_error,
            "tasks": {name: score.value for name, score in result.tasks.items()},
        }


def read_comparison(path: Path) -> Comparison:
    """Read comparison.json. Raises InputError where it is missing or something else."""
    try:
        return Comparison.model_validate(json.loads(path.read_text()))
    except FileNotFoundError as fault:
        raise InputError(f"{path} is missing: run `make merge` first") from fault
    except (ValueError, ValidationError) as fault:
        raise InputError(f"{path} is not a comparison that a run has published; run `make merge` again") from fault
