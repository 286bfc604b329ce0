"""The cells of a comparison: every named change of a plan with every combination of some values, in every repeat."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from mergeline.errors import InputError
from mergeline.plan import CALIBRATION_CONTROLS, Compare, Merge, Plan
from mergeline.plan_file import PlanError, load_plan, override_field, plan_of, read_sections, read_value

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
            values = read_value(text)
        except yaml.YAMLError:
            values = None
        if not (field and equals and isinstance(values, list) and values):
            raise InputError(f"--grid {argument}: write it as section.field=[value, value]")
        grid[field] = values
    return grid


class Cell(BaseModel):
    """A plan by its name in a comparison, in one of its repeats. repeat, group: "" where it is tried once.

    Written down it is without its plan: hundreds of them are more than Prefect takes as a parameter of a flow.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    plan: Plan = Field(exclude=True, repr=False)
    repeat: str = ""
    group: str = ""


def load_cells(
    params: str | Path, overrides: Sequence[str] = (), grid: Mapping[str, Sequence[Any]] | None = None
) -> list[Cell]:
    """The plan of every cell in every repeat, cell by cell. grid: in place of that of the plan.

    A cell publishes into a folder of its own, compares nothing beside its result but what tells how much a calibration
    did for it, registers nothing and tells nobody.
    Its coefficients are searched where it changes `search`. Raises PlanError with the faults of all at once, each with
    the place of its cell; those of a repeat by itself come first, and alone.
    """
    plan = load_plan(params, overrides)
    wanted = plan.compare or Compare()
    grid = grid or wanted.grid
    written = read_sections(params, overrides)[0]
    repeats = list(_repeats(wanted.over))
    faults = list(_comparison_faults(plan, wanted, grid))
    faults += [
        f"{at.place}: {fault}" for at in repeats if at.group for fault in plan_of(changed(written, at.changes))[1]
    ]
    if faults:
        raise PlanError([f"{params}: {fault}" for fault in faults])
    cells: list[Cell] = []
    places: dict[tuple[str, str], str] = {}  # cell and fault -> the first repeat that has it
    for number, (name, place, changes, settings) in enumerate(_combinations(wanted.cells, grid)):
        for at in repeats:
            raw = changed(changed(written, at.changes), changes)
            wrong = [fault for setting in settings if (fault := override_field(raw, setting))]
            searched = changes.get("search") is not None
            _set_apart(raw, folder_of(plan) / at.folder / _folder_name(number, name), searched)
            cell, more = plan_of(raw, searched=searched)
            for fault in wrong or more:
                places.setdefault((place, fault), "" if at is repeats[0] else f" ({at.place})")
            cells.append(Cell(name=name, plan=cell or plan, repeat=at.name, group=at.group))
    if places:
        raise PlanError([f"{params}: {place}{at}: {fault}" for (place, fault), at in places.items()])
    return cells


@dataclass(frozen=True)
class _Repeat:
    """What one repeat of all cells changes in the plan; place: in the plan; folder: within that of the comparison."""

    name: str
    group: str
    place: str
    folder: str
    changes: dict[str, Any]


def _repeats(over: Mapping[str, Sequence[dict[str, Any]]]) -> Iterator[_Repeat]:
    if not over:
        yield _Repeat("", "", "", "", {})
    for place, (group, repeats) in enumerate(over.items()):
        for number, changes in enumerate(repeats):
            name = group if len(repeats) == 1 else f"{group}, {number + 1}"
            yield _Repeat(name, group, f"compare.over.{group}[{number}]", _folder_name(place, name), changes)


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
    named = {f"compare.cells.{name}": changes for name, changes in wanted.cells.items()}
    named |= {at.place: at.changes for at in _repeats(wanted.over)}
    for place, changes in named.items():
        for section in OF_ALL:
            if section in changes:
                yield f"{place}.{section}: all cells have the same; leave it out"


def _folder_name(number: int, name: str) -> str:
    """The name of a cell's folder."""
    return f"{number:03d}-" + re.sub(r"[^\w.=-]+", "-", name)[:80].strip("-")


def _set_apart(raw: dict[str, Any], output: Path, searched: bool) -> None:
    raw |= _QUIET | {"output": str(output), "compare": None}
    if not searched:  # that of the plan is for a search of its own
        raw["search"] = None
    evaluation = raw.get("evaluation") or {}
    if isinstance(evaluation, dict):  # anything else is a fault
        wanted = evaluation.get("compare", [CALIBRATION_CONTROLS])
        controlled = raw.get("calibrate") is not None and isinstance(wanted, list) and CALIBRATION_CONTROLS in wanted
        raw["evaluation"] = evaluation | {"compare": [CALIBRATION_CONTROLS] if controlled else []}
    raw["notify"] = (raw.get("notify") or {}) | {"on": []}
