"""What is known of the loss between models: on the plane through three of them, and along lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mergeline.landscape.barrier import Barrier, barrier
from mergeline.landscape.plane import Plane

State = Literal["before", "after", "shared"]
"""Of a line: before or after alignment; or between models that share one unit order anyway."""
MEAN = "mean of the tasks"


class Points(BaseModel):
    """Loss of every task at a sequence of points, accuracy of those that have one: {task: one number per point}."""

    model_config = ConfigDict(frozen=True)

    losses: dict[str, list[float]]
    accuracies: dict[str, list[float]]


class Curve(BaseModel):
    """What was measured along a line, and the barriers of every task's loss and of the mean over the tasks."""

    model_config = ConfigDict(frozen=True)

    state: State
    losses: dict[str, list[float]]
    accuracies: dict[str, list[float]]
    barriers: dict[str, Barrier]
    accuracy_drops: dict[str, Barrier]


class Line(BaseModel):
    """The line between two models. shares: of the end, from 0 to 1."""

    model_config = ConfigDict(frozen=True)

    start: str
    end: str
    shares: list[float]
    curves: list[Curve]

    @property
    def name(self) -> str:
        """Both ends."""
        return f"{self.start} to {self.end}"


class LossLandscape(BaseModel):
    """The whole. split: the labelled data; of_result: whether the same data measures the result of the plan;
    reset: whether normalisation statistics were measured anew at every point.

    losses: {task: one row of the grid after the other}, from the smallest y; empty where there is no plane.
    models: {anchor of the plane: {task: its loss}}. MEAN stands among the tasks.
    """

    model_config = ConfigDict(frozen=True)

    split: str
    of_result: bool
    reset: bool
    plane: Plane
    losses: dict[str, list[list[float]]]
    models: dict[str, dict[str, float]]
    lines: list[Line]

    @property
    def heights(self) -> dict[str, float]:
        """Every barrier of the mean loss by its line and state: `base-a to base-b/after`."""
        return {
            f"{line.name}/{curve.state}": curve.barriers[MEAN].height for line in self.lines for curve in line.curves
        }


def with_mean(tasks: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """The mean over the tasks at every point, before the tasks themselves; rounded. {} for no task."""
    if not tasks:
        return {}
    columns = zip(*tasks.values(), strict=True)
    rounded = {name: [round(value, 6) for value in values] for name, values in tasks.items()}
    return {MEAN: [round(sum(values) / len(values), 6) for values in columns]} | rounded


def line_of(start: str, end: str, shares: Sequence[float], measured: Mapping[State, Points]) -> Line:
    """A line and the barriers on it; measured: the points at `shares` of the end, in each state."""
    curves = []
    for state, points in measured.items():
        losses, accuracies = with_mean(points.losses), with_mean(points.accuracies)
        errors = {task: [1 - value for value in values] for task, values in accuracies.items()}
        curves.append(
            Curve(
                state=state,
                losses=losses,
                accuracies=accuracies,
                barriers={task: _rounded(barrier(shares, values)) for task, values in losses.items()},
                accuracy_drops={task: _rounded(barrier(shares, values)) for task, values in errors.items()},
            )
        )
    return Line(start=start, end=end, shares=list(shares), curves=curves)


def landscape_of(
    plane: Plane,
    rows: Sequence[Points],
    anchors: Points | None,
    lines: Sequence[Line],
    *,
    split: str,
    of_result: bool,
    reset: bool,
) -> LossLandscape:
    """Put together what was measured. rows: of the grid; anchors: at the three models of the plane, if there is one."""
    measured = [with_mean(row.losses) for row in rows]
    at_models = with_mean(anchors.losses) if anchors else {}
    return LossLandscape(
        split=split,
        of_result=of_result,
        reset=reset,
        plane=plane,
        losses={task: [row[task] for row in measured] for task in at_models},
        models={
            name: {task: values[place] for task, values in at_models.items()}
            for place, name in enumerate(plane.anchors)
        },
        lines=list(lines),
    )


def _rounded(found: Barrier) -> Barrier:
    return Barrier(height=round(found.height, 6), at=round(found.at, 6))
