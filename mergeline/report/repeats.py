"""A merge that was made several times, with other models, tasks or calibration data: its scores and their mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mergeline.evaluation.score import Score, mean_score, over_repeats
from mergeline.report.result import RowScores


class RepeatScores(BaseModel):
    """A cell in one repeat: what it scored there, and on the data that chooses; chosen: whether it is best by that."""

    model_config = ConfigDict(frozen=True)

    repeat: str
    group: str
    scores: RowScores
    choice: Score | None = None
    chosen: bool = False


def mean_of_repeats(rows: Sequence[RowScores]) -> RowScores:
    """The mean of a row over its repeats; of its tasks those that all of them have."""
    first, joint = rows[0], [row.joint for row in rows if row.joint]
    if len(rows) == 1:
        return first

    def common(field: Literal["tasks", "outside"]) -> dict[str, Score]:
        found: list[dict[str, Score]] = [getattr(row, field) for row in rows]
        shared = [task for task in found[0] if all(task in scores for scores in found)]
        return {task: over_repeats([scores[task] for scores in found]) for task in shared}

    return RowScores(
        name=first.name,
        label=first.label,
        tasks=common("tasks"),
        mean=over_repeats([row.mean for row in rows]),
        joint=over_repeats(joint) if len(joint) == len(rows) else None,
        outside=common("outside"),
    )


def mean_outside(scores: RowScores) -> Score | None:
    """The mean of the tasks outside; None where there are none, or they are measured in several ways."""
    found = list(scores.outside.values())
    if len({one.measure for one in found}) != 1:
        return None
    return mean_score(found)
