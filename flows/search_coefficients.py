"""Search lambdas, keep ratio and balance on labelled data. `python -m flows.search_coefficients --help`"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from flows.command_line import exit_status, quiet_prefect
from flows.merge_and_evaluate import align_families
from mergeline.plan import Align, Plan, Search
from mergeline.search.space import search_space
from tasks.checkpoints import download_checkpoint
from tasks.job import Job
from tasks.progress import Progress
from tasks.runners import plan_flow
from tasks.search import Candidates, make_trial, open_study, trials_to_make
from tasks.search_record import SearchOutcome, SearchRecord, publish_best
from tasks.store import ArtifactRef


@plan_flow("search-coefficients")
def search_coefficients(plan: Plan, folder: Path) -> SearchOutcome:
    """Measure the plan, try other coefficients in its place, record every trial, write the best into the folder."""
    search = plan.search or Search()
    space, job, progress = search_space(plan, search), Job(plan), Progress()
    sources = {spec.name: download_checkpoint.submit(**job.source(spec)) for spec in plan.checkpoints}
    checkpoints = progress.results("download", sources)

    def align(options: Align) -> ArtifactRef:
        return align_families(job, options, checkpoints, progress).alignment

    candidates = Candidates(job, search, checkpoints, align)
    own = candidates.scores({})
    with open_study(plan, search, space, candidates.identity) as study:
        record = SearchRecord(plan, search, study)
        known, wanted = len(study.trials), trials_to_make(search, space)
        for _ in tqdm(range(known, wanted), initial=known, total=wanted, desc="trials", unit="trial", disable=None):
            record.add(make_trial(study, candidates))
        trials = study.trials[:wanted]
        outcome = publish_best(plan, search, trials, own, folder, known=known)
        record.finish(trials, outcome)
    return outcome.model_copy(update={"mlflow_run": record.run})


def main() -> int:
    """Exit status 0, 1 where it failed, 2 for bad input, 130 where it was stopped."""
    work = partial(_search, _parser().parse_args())
    again = "the same command again goes on after the last trial that was finished"
    return exit_status(work, what="the search", again=again)


def _search(options: argparse.Namespace) -> None:
    from mergeline.plan_file import load_plan

    trials = [] if options.trials is None else [f"search.trials={options.trials}"]
    plan = load_plan(options.params, [*options.set, *trials], searched=True)
    quiet_prefect()
    show(search_coefficients(plan, options.output), options)


def show(outcome: SearchOutcome, options: argparse.Namespace) -> None:
    """The table, and what to do with the best coefficients."""
    from rich.console import Console

    from mergeline.report.table import header, terminal_table

    width = None if sys.stdout.isatty() else 90 + 12 * len(header(outcome.comparison))
    console = Console(width=width, highlight=False)
    console.print(terminal_table(outcome.comparison))
    for line in outcome.advice(options.params, options.set):
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
