"""The calibration of a plan turned into the inputs of its stages: that of the result, and those of its controls."""

from __future__ import annotations

from typing import Any

from mergeline.comparison import CONTROL_DATA, CONTROL_FIRST, CONTROLS, RESULT, Row
from mergeline.evaluation.kinds import PROTOTYPES
from mergeline.plan import Task
from mergeline.plan_after import Calibrate
from tasks.calibration import TaskClasses
from tasks.inputs import take_prototypes
from tasks.job import Job
from tasks.merge_inputs import MergeInputs
from tasks.store import ArtifactRef


class Calibrations:
    """Which models are calibrated, on what, and towards which task models."""

    def __init__(self, job: Job, options: Calibrate, checkpoints: dict[str, ArtifactRef]) -> None:
        self._job, self._plan = job, job.plan
        self._models = [checkpoints[model.name] for model in job.plan.task_models]
        self._options = options.model_copy(update={"control_data": None})  # says nothing of how to calibrate

    def calls(self, merged: dict[str, ArtifactRef], merges: dict[str, MergeInputs]) -> dict[str, dict[str, Any]]:
        """Arguments of `calibrate_model` for the result and its controls, by row. merges: the inputs of `merged`."""
        calls = {name: self._call(name, merged[name], merges) for name in (RESULT, *CONTROLS) if name in merged}
        if self._job.control_data:
            calls[CONTROL_DATA] = calls[RESULT] | {"calibration": self._job.control_data}
        return calls

    def ridge(self, row: Row) -> dict[str, Any]:
        """Arguments of `evaluate_ridge`: a linear map to what the last layer is calibrated to."""
        measuring = self._job.measuring(self._job.domains)
        measuring["architecture"] = self._job.architecture  # on the CPU: what is fitted there is no answer of a model
        shared = {"models": self._models, "heads": self._heads, "options": self._options}
        calibration = {"calibration": self._job.calibration}
        return {"name": row.name, "label": row.label} | shared | calibration | measuring

    def _call(self, name: str, merged: ArtifactRef, merges: dict[str, MergeInputs]) -> dict[str, Any]:
        """The units of one model alone are those of the result's merge, unless these are zipped: then unmatched."""
        inputs = merges[RESULT if name == CONTROL_FIRST else name]
        zipped = self._plan.align is not None and self._plan.align.method == "zip"
        return {
            "merged": merged,
            "models": self._models,
            "families": inputs.families,
            "alignment": None if name == CONTROL_FIRST and zipped else inputs.alignment,
            "heads": self._heads,
            "options": self._options,
            "max_shard_size": self._plan.merge.max_shard_size,
        } | self._job.calibration_inputs

    @property
    def _heads(self) -> list[list[TaskClasses]]:
        """For each task model the classes of its tasks; empty where not all have some."""
        judged = [task for task in self._plan.tasks if task.kind == PROTOTYPES]
        owned = [[task for task in judged if task.checkpoint == model.name] for model in self._plan.task_models]
        return [[self._task_classes(task) for task in own] for own in owned] if all(owned) else []

    def _task_classes(self, task: Task) -> TaskClasses:
        prototypes = take_prototypes(self._plan.datasets[task.dataset])
        assert prototypes is not None and task.classes is not None, "the plan was checked"
        return TaskClasses(prototypes=prototypes, classes=task.classes)
