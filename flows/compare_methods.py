"""Run a plan with every combination of some values, and rank what comes out: `python -m flows.compare_methods`."""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from flows.command_line import quiet_prefect
from flows.merge_and_evaluate import merge_and_evaluate
from mergeline.errors import InputError
from mergeline.plan import Compare, Plan
from mergeline.redaction import redact
from mergeline.report.leaderboard import Leaderboard, LeaderboardRow
from tasks.dashboard import show_table
from tasks.runners import plan_flow

LEADERBOARD = "leaderboard.csv"


@plan_flow("compare-methods")
def compare_methods(plan: Plan, cells: Mapping[str, Plan]) -> Leaderboard:
    """One run per cell, one after the other; what they share is computed by the first and cached for the rest."""
    metric = (plan.compare or Compare()).metric
    scores = {name: merge_and_evaluate(cell).comparison.result for name, cell in cells.items()}
    rows = [LeaderboardRow(cell=name, scores=row) for name, row in scores.items()]
    leaderboard = Leaderboard(plan=plan.name, rows=rows).ranked(metric)
    _write_csv(leaderboard, folder_of(plan) / LEADERBOARD)
    show_table(plan.name, "leaderboard", leaderboard.table(), f"{plan.name}: {len(rows)} cells by {metric}, in %")
    return leaderboard


def folder_of(plan: Plan) -> Path:
    """Where the cells of a plan are published."""
    return plan.output.parent / f"{plan.name}-compared"


def load_cells(params: str, overrides: Sequence[str], grid: Mapping[str, Sequence[Any]]) -> dict[str, Plan]:
    """The plan of every cell by its name. Raises PlanError for the first that is none, before anything runs."""
    from mergeline.plan_file import load_plan

    if not grid:
        raise InputError("compare: there is no grid; write compare: {grid: {merge.keep_ratio: [0.1, 0.3]}}, or --grid")
    plan = load_plan(params, overrides)
    if not plan.tasks:
        raise InputError("compare: the plan has no tasks, so nothing would be measured; add tasks")
    cells = {}
    for number, values in enumerate(itertools.product(*grid.values())):
        settings = [f"{field}={json.dumps(value)}" for field, value in zip(grid, values, strict=True)]
        place = f"{number:03d}-" + re.sub(r"[^\w.=-]+", "-", " ".join(settings))[:80].strip("-")
        own = [f"output={folder_of(plan) / place}", "evaluation.compare=[]", "registry=null", "promotion=null"]
        own += ["notify.on=[]"]
        cells[", ".join(settings)] = load_plan(params, [*overrides, *settings, *own])
    return cells


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


def _write_csv(leaderboard: Leaderboard, path: Path) -> None:
    rows = leaderboard.table()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def main() -> int:
    """Exit status 0, 1 where it failed, 2 for bad input, 130 where it was stopped."""
    options = _parser().parse_args()
    try:
        from mergeline.plan_file import load_plan

        plan = load_plan(options.params, options.set)
        own = plan.compare.grid if plan.compare else {}
        cells = load_cells(options.params, options.set, read_grid(options.grid) or own)
        quiet_prefect()
        leaderboard = compare_methods(plan, cells)
    except InputError as error:
        print(redact(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command again takes what was done from the cache", file=sys.stderr)
        return 130
    except Exception as error:
        print(redact(traceback.format_exc()), file=sys.stderr)
        print(redact(f"the comparison failed: {type(error).__name__}: {error}"), file=sys.stderr)
        return 1
    for row in leaderboard.table():
        print("  ".join(str(value) for value in row.values()))
    print(f"  {folder_of(plan) / LEADERBOARD}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flows.compare_methods", description=__doc__)
    parser.add_argument("--params", default="params.yaml", metavar="FILE", help="the plan (default: params.yaml)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one field")
    parser.add_argument(
        "--grid", action="append", default=[], metavar="KEY=[VALUES]", help="values to try: merge.keep_ratio=[0.1, 0.3]"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
