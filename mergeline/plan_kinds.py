"""What the kinds of a plan's tasks ask of its other fields: data, metrics, a mean, what may be searched and gated."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from mergeline.evaluation.kinds import (
    CAUSAL_LM,
    HEAD,
    PROTOTYPES,
    SEQ2SEQ,
    is_classification,
    is_function,
    label_space,
    measures_of,
    metrics_of,
    share_labels,
)

Raw = dict[str, Any]


def kind_faults(raw: Raw, tasks: list[Raw]) -> Iterator[str]:
    """Faults of tasks that are those of their kinds. tasks: the mappings of the section `tasks`."""
    datasets = raw.get("datasets") if isinstance(raw.get("datasets"), dict) else {}
    for i, task in enumerate(tasks):
        yield from _own_faults(f"tasks[{i}]", task, (datasets or {}).get(str(task.get("dataset"))))
        if task.get("head") is not None and _are_adapters(raw):
            yield f"tasks[{i}].head: the checkpoints are adapters, which are merged without a module; leave it out"
    yield from _mean_faults(tasks)
    yield from _joint_faults(raw, tasks)
    yield from _gate_faults(raw, tasks)


def kind_of(task: Raw) -> str:
    """The kind of a task as it was written."""
    return str(task.get("kind", PROTOTYPES))


def _are_adapters(raw: Raw) -> bool:
    checkpoints = raw.get("checkpoints")
    entries = checkpoints if isinstance(checkpoints, list) else []
    return any(isinstance(entry, dict) and entry.get("base") == "initial" for entry in entries)


def _metric_of(task: Raw) -> str:
    fitting = metrics_of(kind_of(task))
    return str(task.get("metric", fitting[0] if fitting else "accuracy"))


def _inside(tasks: list[Raw]) -> list[Raw]:
    return [task for task in tasks if task.get("checkpoint") is not None]


def _own_faults(place: str, task: Raw, dataset: Any) -> Iterator[str]:
    kind, metric = kind_of(task), _metric_of(task)
    fitting = metrics_of(kind)
    if fitting and metric not in fitting:
        yield f"{place}.metric: '{metric}' does not fit a task of the kind {kind}; write {', or '.join(fitting)}"
    if kind == PROTOTYPES:
        if task.get("classes") is None:
            yield f"{place}.classes: is missing; name the classes whose prototypes are the possible answers"
        if isinstance(dataset, dict) and dataset.get("prototypes") is None:
            yield f"datasets.{task['dataset']}.prototypes: is missing; {place} is judged against them (or kind: head)"
    elif fitting and not is_classification(kind) and task.get("classes") is not None:
        yield f"{place}.classes: a task of the kind {kind} has none; leave them out"
    if task.get("head") is not None:
        if kind != HEAD:
            yield f"{place}.head: a task of the kind {kind} has none; leave it out, or write kind: head"
        elif task.get("checkpoint") is None:
            yield f"{place}.head: is taken from the task's checkpoint, and there is none; name one, or leave head out"
    if kind in (CAUSAL_LM, SEQ2SEQ) and isinstance(dataset, dict) and dataset.get("text_column") is None:
        yield f"datasets.{task['dataset']}.text_column: is missing; {place} reads texts"
    if is_function(kind):
        yield from _function_faults(place, kind)


def _function_faults(place: str, kind: str) -> Iterator[str]:
    """A function whose module is not there; nothing is imported for it."""
    module = kind.partition(":")[0]
    try:
        missing = not module or find_spec(module) is None
    except (ImportError, ValueError):
        missing = True
    if missing:
        yield f"{place}.kind: there is no module '{module}' to import (write module:function)"


def _mean_faults(tasks: list[Raw]) -> Iterator[str]:
    """Tasks whose numbers have no mean; those outside are in none."""
    fitting = [task for task in _inside(tasks) if _metric_of(task) in metrics_of(kind_of(task))]
    by_measure: dict[str, Raw] = {}
    for task in fitting:
        (measure,) = measures_of([_metric_of(task)])
        by_measure.setdefault(measure, task)
    if len(by_measure) > 1:
        named = " and ".join(f"'{task.get('name')}' by {_metric_of(task)}" for task in list(by_measure.values())[:2])
        yield (
            f"tasks: {named} have no common mean to judge a merge by; measure one of them outside of it "
            "(checkpoint: null), or in a plan of its own"
        )


def _joint_faults(raw: Raw, tasks: list[Raw]) -> Iterator[str]:
    """What goes by a joint accuracy that these tasks do not have."""
    if not _inside(tasks) or has_joint(raw, tasks):
        return
    align = raw.get("align") if isinstance(raw.get("align"), dict) else {}
    for place, section, field, default in (
        ("align.balance_search", (align or {}).get("balance_search"), "metric", "joint"),
        ("search", raw.get("search"), "metric", "joint"),
        ("compare", raw.get("compare"), "metric", "mean"),
        ("promotion", raw.get("promotion"), "score", "mean"),
    ):
        if isinstance(section, dict) and section.get(field, default) == "joint":
            yield (
                f"{place}.{field}: there is no joint accuracy, because the tasks are not all classifications of one "
                f"label space; write {field}: mean"
            )


def has_joint(raw: Raw, tasks: list[Raw]) -> bool:
    """Whether the classes of the tasks that a model was trained for can all be told apart at once."""
    datasets = raw.get("datasets") if isinstance(raw.get("datasets"), dict) else {}
    spaces = []
    for task in _inside(tasks):
        name = str(task.get("dataset"))
        dataset = (datasets or {}).get(name)
        prototypes = dataset.get("prototypes") if isinstance(dataset, dict) else None
        if is_classification(kind_of(task)):
            spaces.append(label_space(kind_of(task), task.get("head"), name, str(prototypes)))
    return share_labels(spaces)


def _gate_faults(raw: Raw, tasks: list[Raw]) -> Iterator[str]:
    """Gates that are shares, of tasks that are measured by something else."""
    promotion = raw.get("promotion")
    if not isinstance(promotion, dict):
        return
    floor, others = promotion.get("floor"), {}
    for task in tasks:
        for measure in measures_of([_metric_of(task)]):
            if measure != "share":
                others[str(task.get("name"))] = (_metric_of(task), task.get("checkpoint") is not None)
    inside = {name: metric for name, (metric, within) in others.items() if within}
    for gate, named in (
        ("floor", [name for name in floor if str(name) in others] if isinstance(floor, dict) else list(inside)),
        ("max_drop", list(inside)),
    ):
        if promotion.get(gate) is not None and named:
            metric = others[str(named[0])][0]
            yield (
                f"promotion.{gate}: '{named[0]}' is measured by {metric}, and this gate is a share of right answers; "
                f"leave it out, and let promotion.champion decide"
            )
