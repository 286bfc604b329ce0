"""The cells of a comparison: every named change of a plan with every combination of some values, each a plan."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mergeline.errors import InputError
from mergeline.plan import Compare, Merge, Plan
from mergeline.plan_file import PlanError, load_plan, override_field, plan_of, read_sections

OF_ALL = ("name", "output", "tracking", "compare")
"""Sections that the cells of a comparison have in common."""

_QUIET: dict[str, Any] = {"registry": None, "promotion": None}


def folder_of(plan: Plan) -> Path:
    """Where the cells of a plan are published."""
    return plan.output.parent / f"{plan.name}-compared"


def read_grid(arguments: Sequence[str]) -> dict[str, list[Any]]:
    """The grid of arguments such as `merge.keep_ratio=[0.1, 0.3]`. Raises InputError for others."""
    grid: dict[str, list[Any]] = {}
    for argument in arguments:
        field, equals, text = argument.partition("=")
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError:
            values = None
        if not (field and equals and isinstance(values, list) and values):
            raise InputError(f"--grid {argument}: write it as section.field=[value, value]")
        grid[field] = values
    return grid


def load_cells(
    params: str | Path, overrides: Sequence[str] = (), grid: Mapping[str, Sequence[Any]] | None = None
) -> dict[str, Plan]:
    """The plan of every cell by its name. grid: in place of that of the plan.

    A cell publishes into a folder of its own, compares nothing beside its result, registers nothing and tells nobody.
    Raises PlanError with the faults of all cells at once, each with the place of its cell.
    """
    plan = load_plan(params, overrides)
    wanted = plan.compare or Compare()
    grid = grid or wanted.grid
    faults = list(_comparison_faults(plan, wanted, grid))
    if faults:
        raise PlanError([f"{params}: {fault}" for fault in faults])
    cells: dict[str, Plan] = {}
    for number, (name, place, changes, settings) in enumerate(_combinations(wanted.cells, grid)):
        raw = changed(read_sections(params, overrides)[0], changes)
        wrong = [fault for setting in settings if (fault := override_field(raw, setting))]
        _set_apart(raw, folder_of(plan) / _folder_name(number, name))
        cell, more = plan_of(raw)
        faults += [f"{params}: {place}: {fault}" for fault in wrong or more]
        cells[name] = cell or plan
    if faults:
        raise PlanError(faults)
    return cells


def on_split(cell: Plan, split: str) -> Plan:
    """The same cell, measured on another split of its tasks' data, published aside and not recorded.

    Tasks outside are of no use for a choice, and need not have that split: they are left out.
    """
    return cell.model_copy(
        update={
            "tasks": [task.model_copy(update={"split": split}) for task in cell.tasks if task.checkpoint is not None],
            "output": cell.output.parent / f"on-{split}" / cell.output.name,
            "landscape": None,
            "tracking": cell.tracking.model_copy(update={"enabled": False}),
        }
    )


def changed(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A plan's sections with others merged over them; lists and plain values are replaced.

    Where the changes name another merging method, the options of the plan's own method are left out: that one would not
    know them.
    """
    result = copy.deepcopy(dict(raw))
    before, after = raw.get("merge"), changes.get("merge")
    if isinstance(before, dict) and isinstance(after, dict) and _method(before | after) != _method(before):
        kept = set(Merge.model_fields) - {"granularity", "options_by_pattern"}
        result["merge"] = {key: value for key, value in before.items() if key in kept}
    return _overlaid(result, changes)


def _method(merge: Mapping[str, Any]) -> Any:
    return merge.get("method", Merge.model_fields["method"].default)


def _overlaid(under: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in over.items():
        below = under.get(key)
        under[key] = _overlaid(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return under


def _combinations(
    named: Mapping[str, dict[str, Any]], grid: Mapping[str, Sequence[Any]]
) -> Iterator[tuple[str, str, dict[str, Any], list[str]]]:
    """Every cell: its name, its place in the plan, what it changes there, and its values of the grid as overrides."""
    for (name, changes), values in itertools.product((named or {"": {}}).items(), itertools.product(*grid.values())):
        settings = [f"{field}={json.dumps(value)}" for field, value in zip(grid, values, strict=True)]
        at = f" ({', '.join(settings)})" if settings else ""
        place = f"compare.cells.{name}{at}" if name else f"compare.grid{at}"
        yield ", ".join([name, *settings] if name else settings), place, changes, settings


def _comparison_faults(plan: Plan, wanted: Compare, grid: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    if not grid and not wanted.cells:
        yield (
            "compare: there is nothing to compare; write compare: {grid: {merge.keep_ratio: [0.1, 0.3]}}, or --grid, "
            "or compare: {cells: {ties: {merge: {method: ties}}}}"
        )
    if not plan.tasks:
        yield "compare: the plan has no tasks, so nothing would be measured; add tasks"
    for field, values in grid.items():
        said = [json.dumps(value) for value in values]
        if twice := next((value for value in said if said.count(value) > 1), None):
            yield f"compare.grid.{field}: {twice} is listed twice"
        if re.split(r"[.\[]", field)[0] in OF_ALL:
            yield f"compare.grid.{field}: all cells have the same; leave it out"
    for name, changes in wanted.cells.items():
        for section in OF_ALL:
            if section in changes:
                yield f"compare.cells.{name}.{section}: all cells have the same; leave it out"


def _folder_name(number: int, name: str) -> str:
    """The name of a cell's folder."""
    return f"{number:03d}-" + re.sub(r"[^\w.=-]+", "-", name)[:80].strip("-")


def _set_apart(raw: dict[str, Any], output: Path) -> None:
    raw |= _QUIET | {"output": str(output), "compare": None}
    raw["evaluation"] = (raw.get("evaluation") or {}) | {"compare": []}
    raw["notify"] = (raw.get("notify") or {}) | {"on": []}
