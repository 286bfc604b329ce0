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

from flows.compare_methods import compare_methods, load_cells
from flows.merge_and_evaluate import merge_and_evaluate
from flows.search_coefficients import search_coefficients
from mergeline.errors import InputError
from mergeline.plan import Notify, Plan
from mergeline.plan_file import load_plan
from tasks._env import project_root
from tasks.changes import check_inputs, remembered
from tasks.notify import notify
from tasks.policy import recomputing

LONGEST = 24 * 3600  # seconds

Params = Annotated[str, Field(description="the plan: a file in the project", examples=["params.yaml"])]
Overrides = Annotated[
    list[str],
    Field(description="fields to override, no secrets: they are shown", examples=[["merge.keep_ratio=0.2"]]),
]


@flow(name="merge", flow_run_name="merge {params}", timeout_seconds=LONGEST)
def merge(
    params: Params = "params.yaml",
    overrides: Overrides = [],  # noqa: B006  Prefect makes the form of it
    only_if_changed: Annotated[
        bool, Field(description="end at once where no input changed since the last run that succeeded")
    ] = False,
    fresh: Annotated[bool, Field(description="compute every stage anew, whatever the cache holds")] = False,
) -> State[Any]:
    """Merge the checkpoints of a plan, evaluate the result, publish it; or find that there is nothing new."""
    plan = _plan(params, overrides)
    inputs = None
    if only_if_changed:
        news = check_inputs(plan)
        if not news:
            return Completed(name="nothing new", message=news.summary)
        inputs = news.inputs
    with recomputing(fresh):
        outcome = remembered(merge_and_evaluate, plan, inputs)
    return Completed(message=f"{outcome.stages}; published into {plan.output}")


@flow(name="search", flow_run_name="search {params}", timeout_seconds=LONGEST)
def search(
    params: Params = "params.yaml",
    overrides: Overrides = [],  # noqa: B006
    trials: Annotated[int | None, Field(ge=1, description="how many trials in all; empty: as the plan says")] = None,
    output: Annotated[str, Field(description="folder for the best coefficients")] = "data/search",
) -> State[Any]:
    """Look for better coefficients on labelled data of their own."""
    wanted = [] if trials is None else [f"search.trials={trials}"]
    plan = _plan(params, [*overrides, *wanted], searched=True)
    return Completed(message=search_coefficients(plan, Path(output)).summary)


@flow(name="compare", flow_run_name="compare {params}", timeout_seconds=LONGEST)
def compare(
    params: Params = "params.yaml",
    overrides: Overrides = [],  # noqa: B006
    grid: Annotated[
        dict[str, list[Any]],
        Field(
            description="fields and their values; empty: the section compare of the plan",
            examples=[{"merge.keep_ratio": [0.1, 0.3]}],
        ),
    ] = {},  # noqa: B006
) -> State[Any]:
    """Run the plan with every combination of some values, and rank what comes out."""
    plan = _plan(params, overrides)
    cells = load_cells(params, overrides, grid or (plan.compare.grid if plan.compare else {}))
    leaderboard = compare_methods(plan, cells)
    return Completed(message=f"{len(cells)} cells; the best: {leaderboard.rows[0].cell}")


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
