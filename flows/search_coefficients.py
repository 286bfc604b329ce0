"""Search lambdas, keep ratio and balance on labelled data. `python -m flows.search_coefficients --help`"""

from __future__ import annotations

import argparse
import shlex
import sys
import traceback
from functools import cache
from pathlib import Path

from prefect import flow
from tqdm import tqdm

from flows.command_line import quiet_prefect
from flows.merge_and_evaluate import align_families
from mergeline.comparison import result_row
from mergeline.errors import InputError
from mergeline.plan import Plan, Search
from mergeline.report.result import RowScores
from mergeline.search.space import Point, plan_at, search_space
from tasks.checkpoints import download_checkpoint
from tasks.job import Job
from tasks.merging import pcb_coefficients
from tasks.progress import Progress
from tasks.search import Ground, fits, open_study, trials_to_make, try_candidate, weigh_task_vectors, without_scales
from tasks.search_record import SearchOutcome, SearchRecord, publish_best


@flow(name="search-coefficients", flow_run_name="{plan.name}")
def search_coefficients(plan: Plan, folder: Path) -> SearchOutcome:
    """Measure the plan, try other coefficients in its place, record every trial, write the best into the folder."""
    search = plan.search or Search()
    space, job, progress = search_space(plan, search), Job(plan), Progress()
    measuring = job.measuring(job.domains_on(search.split))
    sources = {spec.name: download_checkpoint.submit(**job.source(spec)) for spec in plan.checkpoints}
    checkpoints = progress.results("download", sources)

    @cache
    def ground(balance: float | None, keep_ratio: float | None) -> Ground:
        chosen = {"balance": balance, "keep_ratio": keep_ratio}
        there = plan_at(plan, {name: value for name, value in chosen.items() if value is not None})
        row = result_row(there)
        alignment = align_families(job, there.align, checkpoints, progress) if there.align and row.aligned else None
        inputs = job.merge_inputs(row, checkpoints, alignment)
        coefficients = pcb_coefficients(**job.coefficients(row, inputs))
        kept = fits(inputs, search.cache_gigabytes)
        weighted = weigh_task_vectors(inputs, coefficients, without_scales(there.merge)) if kept else None
        return Ground(inputs=inputs, coefficients=coefficients, weighted=weighted)

    def scores_at(point: Point) -> RowScores:
        shared = ground(point.get("balance"), point.get("keep_ratio"))
        return try_candidate(shared, plan_at(plan, point).merge, **measuring)

    own = scores_at({})
    identity = {"ground": ground(None, None), "merge": plan.merge, "align": plan.align} | measuring
    with open_study(plan, search, space, identity) as study:
        record = SearchRecord(plan, search, study)
        known, wanted = len(study.trials), trials_to_make(search, space)
        for _ in tqdm(range(known, wanted), initial=known, total=wanted, desc="trials", unit="trial", disable=None):
            proposal = study.propose()
            scores = scores_at(proposal.point)
            value = getattr(scores, search.metric).value
            record.add(study.add(proposal, value, {"scores": scores.model_dump(mode="json")}))
        outcome = publish_best(plan, search, study.trials[:wanted], own, folder)
        record.finish(study.trials[:wanted], outcome)
    return outcome.model_copy(update={"trials_before": known, "mlflow_run": record.run})


def main() -> int:
    """Exit status 0, 1 where it failed, 2 for bad input, 130 where it was stopped."""
    options = _parser().parse_args()
    trials = [] if options.trials is None else [f"search.trials={options.trials}"]
    try:
        from mergeline.plan_file import load_plan

        plan = load_plan(options.params, [*options.set, *trials], searched=True)
        quiet_prefect()
        outcome = search_coefficients(plan, options.output)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command again goes on after the last trial that was finished", file=sys.stderr)
        return 130
    except Exception as error:
        traceback.print_exc()
        print(f"the search failed: {type(error).__name__}: {error}", file=sys.stderr)
        print("the same command again goes on after the last trial that was finished", file=sys.stderr)
        return 1
    show(outcome, options)
    return 0


def show(outcome: SearchOutcome, options: argparse.Namespace) -> None:
    """The table, where the best coefficients are, and the command that merges with them."""
    from rich.console import Console

    from mergeline.report.table import header, terminal_table

    width = None if sys.stdout.isatty() else 90 + 12 * len(header(outcome.comparison))
    console = Console(width=width, highlight=False)
    console.print(terminal_table(outcome.comparison))
    given = [argument for override in options.set for argument in ("--set", override)]
    chosen = [argument for setting in outcome.settings for argument in ("--set", setting)]
    command = ["python", "-m", "flows.merge_and_evaluate", "--params", options.params, *given, *chosen]
    for line in (outcome.summary, f"the best coefficients: {outcome.file}; to merge with them:", shlex.join(command)):
        console.print(f"  {line}", soft_wrap=True, markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flows.search_coefficients", description=__doc__)
    parser.add_argument("--params", default="params.yaml", metavar="FILE", help="the plan (default: params.yaml)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one field: search.method=tpe"
    )
    parser.add_argument("--trials", type=int, metavar="N", help="how many trials in all (default: search.trials)")
    parser.add_argument("--output", type=Path, default=Path("data/search"), help="folder for the best coefficients")
    return parser


if __name__ == "__main__":
    sys.exit(main())
