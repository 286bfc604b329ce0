"""What a Prefect server offers to run (prefect.yaml): the flows of the command line, with a form in place of arguments.

A worker runs them in the project that it was started for, wherever it keeps its own files.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas import State
from prefect.states import Completed
from pydantic import Field

from flows.compare_methods import compare_methods
from flows.merge_and_evaluate import merge_and_evaluate
from flows.search_coefficients import search_coefficients
from mergeline.errors import InputError
from mergeline.grid import load_cells
from mergeline.plan import Notify, Plan
from mergeline.plan_file import load_plan
from tasks._env import project_root
from tasks.changes import check_inputs, nothing_to_do, remembered
from tasks.notify import notify
from tasks.policy import recomputing
from tasks.watching import failures_told

LONGEST = 24 * 3600  # seconds


@flow(name="merge", flow_run_name="merge {params}", timeout_seconds=LONGEST)
def merge(
    params: str = "params.yaml",
    overrides: list[str] = [],  # noqa: B006  Prefect makes the form of it
    only_if_changed: bool = False,
    fresh: bool = False,
) -> State[Any]:
    """Merge the checkpoints of a plan, evaluate the result, publish it; or find that there is nothing new.

    Args:
        params: The plan: a file in the project.
        overrides: Fields to override, such as merge.keep_ratio=0.2. No secrets: this is shown.
        only_if_changed: End at once where no input changed since the last run that succeeded.
        fresh: Compute every stage anew, whatever the cache holds.
    """
    plan = _plan(params, overrides)
    inputs = None
    if only_if_changed:
        with failures_told(plan, "merge"):
            news = check_inputs(plan)
        if nothing_to_do(plan, news):
            return Completed(name="nothing new", message=news.summary)
        inputs = news.inputs
    with recomputing(fresh):
        outcome = remembered(merge_and_evaluate, plan, inputs)
    return Completed(message=f"{outcome.stages}; published into {plan.output}")


@flow(name="search", flow_run_name="search {params}", timeout_seconds=LONGEST)
def search(
    params: str = "params.yaml",
    overrides: list[str] = [],  # noqa: B006
    trials: Annotated[int, Field(ge=1)] | None = None,
    output: str = "data/search",
) -> State[Any]:
    """Look for better coefficients on labelled data of their own.

    Args:
        params: The plan: a file in the project.
        overrides: Fields to override, such as search.method=tpe. No secrets: this is shown.
        trials: How many trials in all; empty: as the plan says.
        output: Folder for the best coefficients.
    """
    wanted = [] if trials is None else [f"search.trials={trials}"]
    plan = _plan(params, [*overrides, *wanted], searched=True)
    return Completed(message=search_coefficients(plan, Path(output)).summary)


@flow(name="compare", flow_run_name="compare {params}", timeout_seconds=LONGEST)
def compare(
    params: str = "params.yaml",
    overrides: list[str] = [],  # noqa: B006
    grid: dict[str, list[Any]] = {},  # noqa: B006
) -> State[Any]:
    """Run the plan in its named cells, with every combination of some values, and rank what comes out.

    Args:
        params: The plan: a file in the project.
        overrides: Fields to override in all runs. No secrets: this is shown.
        grid: Fields and their values, such as {"merge.keep_ratio": [0.1, 0.3]}; empty: as the plan says.
    """
    plan = _plan(params, overrides)
    with failures_told(plan, "compare"):
        cells = load_cells(params, overrides, grid)
    leaderboard = compare_methods(plan, cells)
    return Completed(message=f"{len({cell.name for cell in cells})} cells; the best: {leaderboard.rows[0].cell}")


def _plan(params: str, overrides: list[str], *, searched: bool = False) -> Plan:
    """The plan, read in the project's root. A plan that cannot be read names nobody to tell: the environment does."""
    root = project_root()
    os.chdir(root)
    if str(root) not in sys.path:  # where factories of the plan's modules may be
        sys.path.insert(0, str(root))
    try:
        return load_plan(params, overrides, searched=searched)
    except InputError as error:
        notify(Notify(), "failure", {"plan": params, "error": str(error)})
        raise
