"""The rows of the result table: what is measured beside the merged model, so that its score means something."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from mergeline.evaluation.kinds import is_answered_by_ensembles, is_classification
from mergeline.plan import Merge, Plan


class Row(BaseModel):
    """One line of the table: a checkpoint, an ensemble of several, a merge of several, or a ridge to their outputs.

    reset: whether normalisation statistics are measured anew on the calibration data of each domain. A merged model
    needs that; a checkpoint is measured as it is, and once more with it, so that the comparison is fair.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    label: str
    kind: Literal["model", "ensemble", "merge", "ridge"]
    members: tuple[str, ...]
    reset: bool = True
    aligned: bool = False
    merge: Merge = Merge()


OWN_MODELS = ("task_models", "task_models_reset")
"""The kinds of rows that the result's own metrics speak of: each task beside the model that was trained for it."""

PER_MODEL = ("scales", "weights")  # options of methods that are one number per task model

RESULT = "merged"
"""Name of the row of the plan's own merge, calibrated where the plan says so."""

UNCALIBRATED = "uncalibrated"
"""Name of the row of that merge before its calibration."""

CONTROL_AVERAGE, CONTROL_FIRST = "control-average", "control-first"
"""Names of the rows that are calibrated like the result, but are the plain average, or one task model alone."""

CONTROL_RANDOM, CONTROL_RIDGE, CONTROL_DATA = "control-random", "control-ridge", "control-data"
"""Names of the rows of the merge after a random alignment, calibrated; of a linear map from raw inputs to what the last
layer is calibrated to; and of the result's merge, calibrated on data of another domain."""

CONTROLS = (CONTROL_AVERAGE, CONTROL_FIRST, CONTROL_RANDOM, CONTROL_RIDGE, CONTROL_DATA)


def comparison_rows(plan: Plan) -> list[Row]:
    """Every row that the plan asks for under `evaluation.compare`, the plan's own merge last; that alone where
    nothing measures it."""
    builders = {
        "task_models": _task_models,
        "task_models_reset": _task_models_reset,
        "bases": _bases,
        "ensemble": _ensemble,
        "average": _average,
        "aligned_average": _aligned_average,
        "unaligned": _unaligned,
        "teams": _teams,
        "calibration_controls": _calibration_controls,
    }
    rows = [row for kind in plan.evaluation.compare if plan.tasks for row in builders[kind](plan)]
    if plan.calibrate and plan.tasks:
        rows.append(result_row(plan).model_copy(update={"name": UNCALIBRATED}))
    result = result_row(plan)
    calibrated = result.model_copy(update={"label": f"{result.label}, calibrated"})
    return [*rows, calibrated if plan.calibrate else result]


def result_row(plan: Plan, balance: str | None = None) -> Row:
    """The row of the plan's own merge; or of the same with another balance of its alignment."""
    names = tuple(model.name for model in plan.task_models)
    aligned = aligns(plan)
    label = f"{_aligned_as(plan) + ', ' if aligned else ''}{_verb(plan.merge)}"
    name = RESULT if balance is None else f"balance-{balance}"
    return Row(name=name, label=label, kind="merge", members=names, aligned=aligned, merge=plan.merge)


def metric_of_mean(plan: Plan) -> str:
    """The metric that the mean over the tasks is a mean of; "mean" where they have several, or there are none."""
    found = {task.metric for task in plan.tasks if task.checkpoint is not None}
    return found.pop() if len(found) == 1 else "mean"


def is_merged(row: Row) -> bool:
    """Whether a row needs a merge of its own; that before calibration, or calibrated on other data, is the result's."""
    return row.kind == "merge" and row.name not in (UNCALIBRATED, CONTROL_DATA)


def _aligned_as(plan: Plan) -> str:
    return "zipped" if plan.align and plan.align.method == "zip" else "aligned"


def aligns(plan: Plan) -> bool:
    """Whether there is anything to align: models of one base share one unit order."""
    return plan.align is not None and len(plan.families) > 1


def _verb(merge: Merge) -> str:
    return {"average": "averaged", "pcb": "PCB"}.get(merge.method, merge.method.replace("_", " "))


def _task_models(plan: Plan) -> Iterator[Row]:
    for model in plan.task_models:
        yield Row(name=model.name, label=model.name, kind="model", members=(model.name,), reset=False)


def _task_models_reset(plan: Plan) -> Iterator[Row]:
    for model in plan.task_models if plan.calibration else ():
        yield Row(name=f"{model.name}-reset", label=f"{model.name}, reset", kind="model", members=(model.name,))


def _bases(plan: Plan) -> Iterator[Row]:
    for base in plan.bases:
        yield Row(name=base.name, label=base.name, kind="model", members=(base.name,), reset=False)


def _ensemble(plan: Plan) -> Iterator[Row]:
    """None where a kind of task has no mean of answers, or a head would meet models of another base as they are."""
    names = tuple(model.name for model in plan.task_models)
    fits = not plan.heads or len(plan.families) == 1
    if fits and all(is_answered_by_ensembles(task.kind) for task in plan.tasks):
        yield Row(name="ensemble", label=f"ensemble of {len(names)}", kind="ensemble", members=names)


def _average(plan: Plan) -> Iterator[Row]:
    names = tuple(model.name for model in plan.task_models)
    if plan.merge.method != "average" or aligns(plan):
        yield Row(name="average", label="plain average", kind="merge", members=names, merge=_average_of(plan))


def _aligned_average(plan: Plan) -> Iterator[Row]:
    names = tuple(model.name for model in plan.task_models)
    if aligns(plan) and plan.merge.method != "average":
        yield Row(
            name="aligned-average",
            label=f"{_aligned_as(plan)}, averaged",
            kind="merge",
            members=names,
            aligned=True,
            merge=_average_of(plan),
        )


def _average_of(plan: Plan) -> Merge:
    return Merge(method="average", vocabulary=plan.merge.vocabulary)


def _unaligned(plan: Plan) -> Iterator[Row]:
    """The plan's merge without alignment: onto the mean of the bases, and onto the first, which it then mostly is."""
    names = tuple(model.name for model in plan.task_models)
    if not aligns(plan) or plan.merge.method == "average":
        return
    for onto, place in (("mean", "mean of bases"), ("first", plan.families[0])):
        yield Row(
            name=f"unaligned-{onto}",
            label=f"{_verb(plan.merge)} onto {place}, not aligned",
            kind="merge",
            members=names,
            merge=plan.merge.model_copy(update={"onto": onto}),
        )


def _teams(plan: Plan) -> Iterator[Row]:
    """The models of one base alone: they need no alignment, and leaving these rows out would mislead."""
    for family in plan.families if len(plan.families) > 1 else ():
        names = tuple(model.name for model in plan.task_models if model.base == family)
        if len(names) > 1:
            yield Row(
                name=f"team-{family}",
                label=f"models of {family} only, {_verb(plan.merge)}",
                kind="merge",
                members=names,
                merge=_merge_of(names, plan),
            )


def _calibration_controls(plan: Plan) -> Iterator[Row]:
    """What the same calibration makes of models that nobody merged well: how much of the result is its own."""
    if plan.calibrate is None:
        return
    names, average = tuple(model.name for model in plan.task_models), _average_of(plan)
    for name, label, members in (
        (CONTROL_AVERAGE, "plain average", names),
        (CONTROL_FIRST, f"{names[0]} alone", names[:1]),
    ):
        yield Row(name=name, label=f"control: {label}, calibrated", kind="merge", members=members, merge=average)
    if aligns(plan):
        random = result_row(plan).model_copy(update={"name": CONTROL_RANDOM})
        yield random.model_copy(update={"label": "control: random alignment, calibrated"})
    if _is_linear_control_possible(plan):
        yield Row(name=CONTROL_RIDGE, label="control: ridge from raw inputs", kind="ridge", members=names)
    if data := plan.calibrate.control_data:
        result = result_row(plan)
        label = f"control: {result.label}, calibrated on {data.place}"
        yield result.model_copy(update={"name": CONTROL_DATA, "label": label})


def _is_linear_control_possible(plan: Plan) -> bool:
    """Whether one linear map of real-valued inputs can answer all tasks: classifications without heads of their own on
    pictures of the data set that calibrates, so that their sizes are alike."""
    if plan.calibration is None or plan.datasets[plan.calibration.dataset].text_column is not None or plan.heads:
        return False
    return all(is_classification(task.kind) and task.dataset == plan.calibration.dataset for task in plan.tasks)


def _merge_of(names: tuple[str, ...], plan: Plan) -> Merge:
    """The plan's merge of some of its task models: options with one number per model keep those of these models."""
    places = [place for place, model in enumerate(plan.task_models) if model.name in names]

    def of_these(options: dict[str, Any]) -> dict[str, Any]:
        whole = {key: value for key, value in options.items() if key in PER_MODEL and isinstance(value, list)}
        fitting = {key: value for key, value in whole.items() if len(value) == len(plan.task_models)}
        return options | {key: [value[place] for place in places] for key, value in fitting.items()}

    by_pattern = {pattern: of_these(options) for pattern, options in plan.merge.options_by_pattern.items()}
    return plan.merge.model_copy(update=of_these(plan.merge.options) | {"options_by_pattern": by_pattern})
