"""What the fields of a plan must mean together: names that refer to something, files that exist, options that fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mergeline.comparison import CONTROLS
from mergeline.errors import InputError, nearest
from mergeline.evaluation.kinds import PROTOTYPES, has_loss, is_classification
from mergeline.evaluation.sources import splits_of, tokenizer_file
from mergeline.merging import registry
from mergeline.merging.patterns import pattern_faults
from mergeline.plan import CALIBRATION_CONTROLS, INITIAL, Merge
from mergeline.plan_kinds import kind_faults, kind_of
from mergeline.plan_surroundings import (
    address_faults,
    architecture_faults,
    class_faults,
    column_faults,
    control_faults,
    output_faults,
    sample_faults,
)
from mergeline.search.space import check_searchable

RESERVED = (
    INITIAL,
    "merged",
    "uncalibrated",
    "ensemble",
    "average",
    "aligned-average",
    "unaligned-mean",
    "unaligned-first",
    *CONTROLS,
)


def reference_faults(raw: dict[str, Any]) -> Iterator[str]:
    """Faults between fields of a plan as it was read, whether or not each section is valid by itself."""
    checkpoints = _entries(raw, "checkpoints")
    yield from _checkpoint_faults(checkpoints)
    yield from _dataset_faults(raw)
    yield from _task_faults(raw, checkpoints)
    yield from kind_faults(raw, _entries(raw, "tasks"))
    yield from _merge_faults(raw.get("merge") or {}, checkpoints)
    yield from _evidence_faults(raw, checkpoints)
    yield from _align_faults(raw)
    yield from _landscape_faults(raw, checkpoints)
    yield from _missing_sections(raw, checkpoints)
    yield from _calibrate_faults(raw, checkpoints)
    yield from _export_faults(raw)
    yield from _registry_faults(raw)
    yield from _compare_faults(raw)
    yield from architecture_faults(raw.get("architecture"))
    yield from output_faults(raw.get("output", "data/merged"))


def _entries(raw: dict[str, Any], section: str) -> list[dict[str, Any]]:
    """The mappings of a section that is a list; what is not a mapping is the schema's to report."""
    items = raw.get(section)
    return [item if isinstance(item, dict) else {} for item in items] if isinstance(items, list) else []


def _names(entries: list[dict[str, Any]]) -> list[str]:
    return [str(entry.get("name")) for entry in entries]


def _base_names(checkpoints: list[dict[str, Any]]) -> set[str]:
    return {str(entry["base"]) for entry in checkpoints if entry.get("base") is not None} - {INITIAL}


def _families(checkpoints: list[dict[str, Any]]) -> set[str]:
    return {str(entry.get("base") or entry.get("name")) for entry in checkpoints}  # a base is one by its own name


def _checkpoint_faults(checkpoints: list[dict[str, Any]]) -> Iterator[str]:
    names = _names(checkpoints)
    bases = _base_names(checkpoints)
    for i, entry in enumerate(checkpoints):
        name, base, uri = str(entry.get("name")), entry.get("base"), str(entry.get("uri", ""))
        if names.index(name) != i:
            yield f"checkpoints[{i}].name: '{name}' is taken already; names must differ"
        if base == INITIAL:
            if other := next((str(other.get("name")) for other in checkpoints if other.get("base") != INITIAL), None):
                yield f"checkpoints[{i}].base: '{name}' starts from {INITIAL}, '{other}' does not; merge adapters alone"
        elif base is not None and str(base) not in names:
            yield f"checkpoints[{i}].base: no checkpoint is called '{base}'{nearest(str(base), names, listed=True)}"
        elif base is not None and name in bases:
            yield f"checkpoints[{i}].base: '{name}' is itself a base; a base has no base"
        if name in RESERVED or name.startswith("team-") or name.endswith("-reset"):
            yield f"checkpoints[{i}].name: '{name}' is the name of a row of the result table; choose another"
        yield from (f"checkpoints[{i}].uri: {fault}" for fault in address_faults(uri))
    if checkpoints and len(set(names) - bases) < 2:
        yield "checkpoints: at least two task models are needed (bases do not count)"


def _dataset_faults(raw: dict[str, Any]) -> Iterator[str]:
    datasets = raw.get("datasets") or {}
    if not isinstance(datasets, dict):
        return
    for name, entry in datasets.items():
        if not isinstance(entry, dict):
            continue
        if entry.get("path") is not None and not Path(str(entry["path"])).is_dir():
            yield f"datasets.{name}.path: the folder '{entry['path']}' does not exist"
        if entry.get("prototypes") is not None and not Path(str(entry["prototypes"])).is_file():
            yield f"datasets.{name}.prototypes: the file '{entry['prototypes']}' does not exist"
        if entry.get("tokenizer") is not None:
            try:
                tokenizer_file(Path(str(entry["tokenizer"])))
            except InputError as fault:
                yield f"datasets.{name}.tokenizer: {fault}"
    calibration = raw.get("calibration")
    if isinstance(calibration, dict):
        yield from _split_faults("calibration", calibration, datasets, "calibration")
    for i, task in enumerate(_entries(raw, "tasks")):
        yield from _split_faults(f"tasks[{i}]", task, datasets, "test")
        if isinstance(dataset := datasets.get(str(task.get("dataset"))), dict):
            yield from class_faults(f"tasks[{i}]", task, dataset)


def _split_faults(place: str, entry: dict[str, Any], datasets: dict[str, Any], default: str) -> Iterator[str]:
    name = str(entry.get("dataset"))
    if "dataset" in entry and name not in datasets:
        yield f"{place}.dataset: no dataset is called '{name}'{nearest(name, datasets, listed=True)}"
        return
    folder = (datasets.get(name) or {}).get("path") if isinstance(datasets.get(name), dict) else None
    if folder is None or not Path(str(folder)).is_dir():
        return
    splits = splits_of(Path(str(folder)))
    split = str(entry.get("split", default))
    if split not in splits:
        yield f"{place}.split: '{split}' is not a split of {folder} ({', '.join(splits)}){nearest(split, splits)}"
    else:
        yield from column_faults(place, entry, datasets[name], name, splits[split])
        if place == "calibration":
            yield from sample_faults(entry, splits[split])


def _task_faults(raw: dict[str, Any], checkpoints: list[dict[str, Any]]) -> Iterator[str]:
    tasks = _entries(raw, "tasks")
    names = _names(tasks)
    models = [name for name in _names(checkpoints) if name not in _base_names(checkpoints)]
    for i, task in enumerate(tasks):
        if names.index(names[i]) != i:
            yield f"tasks[{i}].name: '{names[i]}' is taken already; names must differ"
        checkpoint = str(task.get("checkpoint"))
        if not _is_outside(task) and checkpoint not in models:
            hint = nearest(checkpoint, models, listed=True)
            yield f"tasks[{i}].checkpoint: no task model is called '{checkpoint}'{hint}"
        classes = task.get("classes")
        if isinstance(classes, list) and len(set(map(str, classes))) != len(classes):
            yield f"tasks[{i}].classes: a class is listed twice"

    if tasks and all(map(_is_outside, tasks)):
        yield "tasks: none names the checkpoint that was trained for it, so there is no mean to show; name one"


def _is_outside(task: dict[str, Any]) -> bool:
    """Whether no task model was trained for a task."""
    return task.get("checkpoint") is None


def _align_faults(raw: dict[str, Any]) -> Iterator[str]:
    align, merge = raw.get("align"), raw.get("merge")
    if not isinstance(align, dict):
        return
    if align.get("method") == "zip" and isinstance(merge, dict) and merge.get("onto") == "first":
        yield "merge.onto: 'first' needs units that stay apart, but align.method is zip; write onto: mean"
    search = align.get("balance_search")
    if not isinstance(search, dict):
        return
    if align.get("space", "dual") != "dual":
        yield f"align.balance_search: space {align['space']} has no balance; write space: dual, or leave the search out"
    balances = search.get("balances", [])
    if isinstance(balances, list) and len(set(map(str, balances))) != len(balances):
        yield "align.balance_search.balances: a balance is listed twice"
    yield from _search_split_faults("align.balance_search", search.get("split", "calibration"), raw)


def _search_split_faults(place: str, split: Any, raw: dict[str, Any]) -> Iterator[str]:
    """A split to search on that has no labels or is not there, and one that measures the result."""
    datasets, tasks = raw.get("datasets"), _entries(raw, "tasks")
    if isinstance(datasets, dict):
        inside = (task for task in tasks if not _is_outside(task))
        faults = (_split_faults(place, {**task, "split": split}, datasets, str(split)) for task in inside)
        yield from dict.fromkeys(fault for found in faults for fault in found)
    measured = [f"tasks[{i}]" for i, task in enumerate(tasks) if task.get("split", "test") == split]
    if measured:
        listed = f"{measured[0]} is" if len(measured) == 1 else f"{', '.join(measured)} are"
        yield f"{place}.split: {listed} measured on '{split}'; search on other data"


def search_faults(raw: dict[str, Any]) -> Iterator[str]:
    """Faults of a plan whose coefficients are to be searched, beside those of `reference_faults`."""
    search, merge, align = raw.get("search") or {}, raw.get("merge") or {}, raw.get("align", {})
    if not isinstance(search, dict):
        return
    yield from _search_split_faults("search", search.get("split", "validation"), raw)
    try:
        check_searchable(str(merge.get("method", "pcb")) if isinstance(merge, dict) else "pcb")
    except InputError as fault:
        yield str(fault)
    if not raw.get("tasks"):
        yield "tasks: there are none, so nothing tells good coefficients from bad ones; name at least one"
    over = search.get("over", [])
    over = over if isinstance(over, list) else []
    if "scale" in over and "scales" in over:
        yield "search.over: scale multiplies what scales already weigh; search one of the two"
    twice = next((name for name in over if over.count(name) > 1), None)
    if twice is not None:
        yield f"search.over: '{twice}' is listed twice"
    if "balance" in over and (not isinstance(align, dict) or align.get("space", "dual") != "dual"):
        yield "search.over: there is no balance to search: the plan aligns nothing in dual space"


def _merge_faults(merge: Any, checkpoints: list[dict[str, Any]]) -> Iterator[str]:
    if not isinstance(merge, dict):
        return
    options = {key: value for key, value in merge.items() if key not in Merge.model_fields}
    try:
        method = registry.get(str(merge.get("method", "pcb")))
    except InputError as fault:
        yield f"merge.method: {fault}"
        return
    for name, sentence in method.option_faults(options).items():
        yield f"merge.{name}: {sentence}{_left_over(name, method)}"
    if merge.get("granularity") is not None and method.statistics is None:
        yield f"merge.granularity: '{method.name}' gathers no statistics, so it has no granularity; leave it out"
    if isinstance(by_pattern := merge.get("options_by_pattern"), dict):
        for pattern, sentence in pattern_faults(method, by_pattern).items():
            yield f"merge.options_by_pattern[{pattern!r}]: {sentence}"
    try:
        method.check_models(len(set(_names(checkpoints)) - _base_names(checkpoints)))
    except InputError as fault:
        yield f"merge.method: {fault}"
    if method.needs_base:
        bases = _base_names(checkpoints)
        for i, entry in enumerate(checkpoints):
            if entry.get("base") is None and str(entry.get("name")) not in bases:
                yield f"checkpoints[{i}].base: is missing; '{method.name}' merges task vectors (model - base)"


def _left_over(option: str, method: registry.Method) -> str:
    """The end of a sentence about an option that only other methods have: how to change the method with its options."""
    if option in method.options or not any(option in registry.get(name).options for name in registry.names()):
        return ""
    return f", which belongs to others; leave it out, or set all of merge: --set 'merge={{method: {method.name}}}'"


def _evidence_faults(raw: dict[str, Any], checkpoints: list[dict[str, Any]]) -> Iterator[str]:
    """What a method that weighs models by data lacks: tasks of every model, and data that does not measure it."""
    merge = raw.get("merge")
    name = str(merge.get("method", "pcb")) if isinstance(merge, dict) else "pcb"
    if name not in registry.names() or registry.get(name).evidence is None:
        return
    tasks, bases = [task for task in _entries(raw, "tasks") if not _is_outside(task)], _base_names(checkpoints)
    measured = {str(task.get("checkpoint")) for task in tasks}
    for i, task in enumerate(_entries(raw, "tasks")):
        if not _is_outside(task) and not is_classification(kind_of(task)):
            yield f"tasks[{i}].kind: '{name}' weighs models by classifications, and this is none; choose another method"
    for i, model in enumerate(_names(checkpoints)):
        if model not in bases | measured:
            yield f"checkpoints[{i}]: '{name}' weighs models by data of their tasks, and no task names '{model}'"
    align = raw.get("align")
    if isinstance(align, dict) and align.get("method") == "zip":
        yield f"merge.method: '{name}' weighs the units of each model, and zip merges them; write align.method: permute"
    evidence = merge.get("evidence") or {} if isinstance(merge, dict) else {}
    split = evidence.get("split", "calibration") if isinstance(evidence, dict) else "calibration"
    if any(task.get("split", "test") == split for task in tasks):
        yield f"merge.evidence.split: tasks are measured on '{split}'; weigh the models by other data"
    if isinstance(evidence, dict) and evidence.get("classes") == "any" and registry.get(name).evidence == "fisher":
        yield "merge.evidence.classes: 'fisher' takes labels among the task's own classes; leave it out"
    if isinstance(datasets := raw.get("datasets"), dict):
        faults = (_split_faults("merge.evidence", {**task, "split": split}, datasets, split) for task in tasks)
        yield from dict.fromkeys(fault for found in faults for fault in found)


def _landscape_faults(raw: dict[str, Any], checkpoints: list[dict[str, Any]]) -> Iterator[str]:
    """A landscape without losses, without a common unit order, on data that is not there, or through no task models."""
    landscape, align = raw.get("landscape"), raw.get("align")
    if not isinstance(landscape, dict):
        return
    tasks = [task for task in _entries(raw, "tasks") if not _is_outside(task) and has_loss(kind_of(task))]
    if not tasks:
        yield (
            "landscape: no task is a classification or a causal_lm that a model was trained for, so there is no loss "
            "to show; name one, or leave landscape out"
        )
    if isinstance(align, dict) and align.get("method") == "zip" and len(_families(checkpoints)) > 1:
        yield (
            "landscape: align.method zip merges units, so before the merge no two models have a common unit order to "
            "go along; write align.method: permute, or leave landscape out"
        )
    if isinstance(datasets := raw.get("datasets"), dict):
        split = str(landscape.get("split", "validation"))
        faults = (_split_faults("landscape", {**task, "split": split}, datasets, split) for task in tasks)
        yield from dict.fromkeys(fault for found in faults for fault in found)
    models = [name for name in _names(checkpoints) if name not in _base_names(checkpoints)]
    through = landscape.get("through")
    named = [str(name) for name in through] if isinstance(through, list) else []
    for i, name in enumerate(named):
        if name not in models:
            yield f"landscape.through[{i}]: no task model is called '{name}'{nearest(name, models, listed=True)}"
    if len(set(named)) < len(named):
        yield f"landscape.through: '{named[0]}' is listed twice; the plane needs two task models"


def _missing_sections(raw: dict[str, Any], checkpoints: list[dict[str, Any]]) -> Iterator[str]:
    """Sections that a merge alone does not need, but an evaluation or an alignment does."""
    families = _families(checkpoints)
    needs = {"architecture": bool(raw.get("tasks"))}
    needs["calibration"] = any(is_classification(kind_of(task)) for task in _entries(raw, "tasks"))
    for section in ("architecture", "calibration"):
        if raw.get(section) is not None:
            continue
        if needs[section]:
            yield f"{section}: is missing; the models of `tasks` are evaluated with it"
        elif raw.get("align", {}) is not None and len(families) > 1:
            yield f"{section}: is missing; models of different bases are aligned by it (align: null merges them as is)"


def _calibrate_faults(raw: dict[str, Any], checkpoints: list[dict[str, Any]]) -> Iterator[str]:
    """A calibration that has no module or data, changes nothing, or asks heads that no task names."""
    calibrate = raw.get("calibrate")
    if not isinstance(calibrate, dict):
        return
    for section in ("architecture", "calibration"):
        if raw.get(section) is None:
            yield f"{section}: is missing; `calibrate` runs the merged model and its task models on calibration inputs"
    last_layer = calibrate.get("last_layer", "mean")
    if calibrate.get("centre") is False and calibrate.get("layers") is False and last_layer == "none":
        yield "calibrate: centre, last_layer and layers are all off, so it would change nothing; write calibrate: null"
    judged = [task for task in _entries(raw, "tasks") if not _is_outside(task) and kind_of(task) == PROTOTYPES]
    known = {str(task.get("checkpoint")) for task in judged}
    for name in _names(checkpoints) if last_layer == "heads" else ():
        if name not in known | _base_names(checkpoints):
            yield (
                f"calibrate.last_layer: 'heads' needs the classes of every task model, and no task with label "
                f"prototypes names '{name}'"
            )
    if isinstance(control := calibrate.get("control_data"), dict) and isinstance(datasets := raw.get("datasets"), dict):
        yield from _split_faults("calibrate.control_data", control, datasets, "calibration")
        yield from control_faults(control, raw.get("calibration"), datasets)
        if isinstance(compared := _compared(raw), list) and CALIBRATION_CONTROLS not in compared:
            yield f"calibrate.control_data: needs {CALIBRATION_CONTROLS} in evaluation.compare; add it, or leave it out"


def _compared(raw: dict[str, Any]) -> Any:
    """`evaluation.compare` as it was written; None where it was not."""
    return evaluation.get("compare") if isinstance(evaluation := raw.get("evaluation"), dict) else None


def _export_faults(raw: dict[str, Any]) -> Iterator[str]:
    """Programs of a module that the plan does not describe, or has nothing to check with."""
    kinds = raw.get("export")
    for section in ("architecture", "calibration"):
        if kinds and raw.get(section) is None:
            yield f"{section}: is missing; `export` makes a program of the module, and checks it on calibration inputs"
    if isinstance(kinds, list) and len(set(map(str, kinds))) != len(kinds):
        yield "export: a kind is listed twice"


def _compare_faults(raw: dict[str, Any]) -> Iterator[str]:
    """A choice among the cells of a comparison by data that is not there, or that measures the result."""
    compare = raw.get("compare")
    choose = compare.get("choose") if isinstance(compare, dict) else None
    if isinstance(choose, dict):
        yield from _search_split_faults("compare.choose", choose.get("split", "validation"), raw)


def _registry_faults(raw: dict[str, Any]) -> Iterator[str]:
    """A promotion of what is not registered, and gates that nothing measures."""
    tracking, promotion = raw.get("tracking"), raw.get("promotion")
    if raw.get("registry") is not None and isinstance(tracking, dict) and tracking.get("enabled") is False:
        yield "registry: tracking.enabled is false, and a model is registered with its run; leave one of them out"
    if not isinstance(promotion, dict):
        return
    if raw.get("registry") is None:
        yield "promotion: there is no section `registry` that says which registered model is promoted"
    tasks = _names(_entries(raw, "tasks"))
    floor = promotion.get("floor")
    for name in floor if isinstance(floor, dict) else ():
        if str(name) not in tasks:
            yield f"promotion.floor: no task is called '{name}'{nearest(str(name), tasks, listed=True)}"
    if not tasks:
        gates = {"champion": promotion.get("champion", "not_worse"), "max_drop": promotion.get("max_drop")}
        for gate, value in (gates | {"floor": None if isinstance(floor, dict) else floor}).items():
            if value is not None:
                yield f"promotion.{gate}: there are no tasks, so nothing measures it; write {gate}: null"
    compared = _compared(raw)
    unmeasured = isinstance(compared, list) and not {"task_models", "task_models_reset"} & set(map(str, compared))
    if promotion.get("max_drop") is not None and unmeasured:
        yield "promotion.max_drop: needs the tasks' own models measured; add task_models to evaluation.compare"
