"""The landscape of a plan turned into the inputs of its stages: which models span the plane, and which lines."""

from __future__ import annotations

from typing import Any

from mergeline.comparison import RESULT
from mergeline.landscape.landscape import Points, State
from mergeline.landscape.plane import Plane
from mergeline.plan import Checkpoint
from mergeline.plan_after import Landscape
from tasks.domains import Domain
from tasks.findings import Aligned
from tasks.job import Job
from tasks.landscape import Anchor, MeasuredLine
from tasks.store import ArtifactRef

AT_MODELS = "models"
"""Among the rows of the plane: its three models themselves."""


class Survey:
    """The landscape of a run: where to measure, from the checkpoints, the merged model and the alignment."""

    def __init__(
        self,
        job: Job,
        options: Landscape,
        checkpoints: dict[str, ArtifactRef],
        merged: ArtifactRef,
        aligned: Aligned | None,
    ) -> None:
        self._job, self._options, self._plan = job, options, job.plan
        self._checkpoints, self._merged, self._aligned = checkpoints, merged, aligned
        measuring = job.measuring(_with_loss(job.domains_on(options.split)))
        self._measuring = {name: value for name, value in measuring.items() if name != "classes"}
        self._heads = {
            state: job.heads(checkpoints, aligned.alignment if aligned and state != "before" else None)
            for state in ("before", "after", "shared")
        }
        self._ends = self._two_task_models()

    @property
    def placing(self) -> dict[str, Any]:
        """Arguments of `lay_plane`: the two task models, the merged one, the other task models; to spare are the bases
        and the second model as it was before alignment."""
        others = [model for model in self._plan.task_models if model not in self._ends]
        spare = [self._anchor(base) for base in self._plan.bases]
        if self._plan.family_of(self._ends[1]):
            spare.append(self._anchor(self._ends[1], aligned=False, suffix=", not aligned"))
        first, second = (self._anchor(end) for end in self._ends)
        merged = Anchor(name=RESULT, model=self._merged)
        return {
            "models": [first, second, merged, *(self._anchor(model) for model in others)],
            "spare": spare,
            "architecture": self._job.architecture,
            "points": self._options.points,
            "margin": self._options.margin,
        }

    def rows(self, plane: Plane) -> dict[str, dict[str, Any]]:
        """Arguments of `measure_losses` for every row of the grid, by its number, and for the models themselves."""
        if plane.problem:
            return {}
        placing = self.placing
        known = {anchor.name: anchor for anchor in [*placing["models"], *placing["spare"]]}
        shared = {"anchors": [known[name] for name in plane.anchors], **self._measuring, "heads": self._heads["after"]}
        corners = [[float(place == model) for model in range(3)] for place in range(3)]
        points = {AT_MODELS: corners} | {f"row {number}": plane.row(number) for number in range(len(plane.ys))}
        return {name: {"weights": weights, **shared} for name, weights in points.items()}

    @property
    def lines(self) -> dict[str, dict[str, Any]]:
        """Arguments of `measure_losses` for every line in every state."""
        calls = {}
        for start, states in self._all_lines():
            for state, end in states.items():
                weights = [[1.0 - share, share] for share in self._shares]
                models = {"anchors": [start, end], "weights": weights, "heads": self._heads[state]}
                calls[_key(start, end, state)] = models | self._measuring
        return calls

    def drawing(self, plane: Plane, measured: dict[str, Points]) -> dict[str, Any]:
        """Arguments of `draw_landscape`."""
        rows = [] if plane.problem else [measured[f"row {number}"] for number in range(len(plane.ys))]
        lines = [
            MeasuredLine(
                start=start.name,
                end=next(iter(states.values())).name,
                shares=self._shares,
                measured={state: measured[_key(start, end, state)] for state, end in states.items()},
            )
            for start, states in self._all_lines()
        ]
        return {
            "plane": plane,
            "rows": rows,
            "anchors": measured.get(AT_MODELS),
            "lines": lines,
            "split": self._options.split,
            "reset": self._plan.calibration is not None,
            "of_result": any(task.split == self._options.split for task in self._plan.tasks),
        }

    @property
    def _shares(self) -> list[float]:
        from mergeline.landscape.interpolation import line_weights

        return line_weights(self._options.line_points)

    def _all_lines(self) -> list[tuple[Anchor, dict[State, Anchor]]]:
        """From what each family was aligned on to the first one, and between the two task models of the plane."""
        found: list[tuple[Anchor, dict[State, Anchor]]] = []
        names, aligned = self._plan.families, self._aligned
        if aligned:
            start = Anchor(name=names[0], model=aligned.families[0])
            for family in range(1, len(names)):
                end = Anchor(name=names[family], model=aligned.families[family])
                after = end.model_copy(update={"family": family, "alignment": aligned.alignment})
                found.append((start, {"before": end, "after": after}))
        first, second = self._ends
        if aligned and {first.name, second.name} <= set(names):
            return found  # they are what was aligned
        before, after = self._anchor(second, aligned=False), self._anchor(second)
        if self._plan.family_of(first) == self._plan.family_of(second):
            states: dict[State, Anchor] = {"shared": after}
        else:
            states = {"before": before, "after": after} if aligned else {"before": before}
        return [*found, (self._anchor(first), states)]

    def _two_task_models(self) -> tuple[Checkpoint, Checkpoint]:
        models = {model.name: model for model in self._plan.task_models}
        if self._options.through:
            first, second = self._options.through
            return models[first], models[second]
        by_family: dict[str, list[Checkpoint]] = {}
        for model in models.values():
            by_family.setdefault(model.base or model.name, []).append(model)
        families = list(by_family.values())
        return families[0][0], families[-1][0] if len(families) > 1 else families[0][-1]

    def _anchor(self, model: Checkpoint, *, aligned: bool = True, suffix: str = "") -> Anchor:
        """A checkpoint of the plan, in the common unit order where there is one."""
        alignment = self._aligned.alignment if self._aligned and aligned else None
        return Anchor(
            name=model.name + suffix,
            model=self._checkpoints[model.name],
            family=self._plan.family_of(model) if alignment else 0,
            alignment=alignment,
        )


def _with_loss(domains: list[Domain]) -> list[Domain]:
    """The domains with those of their tasks whose answers have a loss."""
    kept = [
        domain.model_copy(update={"tasks": {task: asked for task, asked in domain.tasks.items() if asked.has_loss}})
        for domain in domains
    ]
    return [domain for domain in kept if domain.tasks]


def _key(start: Anchor, end: Anchor, state: State) -> str:
    return f"{start.name} to {end.name}, {state}"
