"""Run a plan in several ways, and rank what comes out: `python -m flows.compare_methods --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from tqdm import tqdm

from flows.command_line import exit_status, quiet_prefect
from flows.merge_and_evaluate import align_families, calibrate_models, merge_and_evaluate, merge_rows
from flows.search_coefficients import search_coefficients
from mergeline.comparison import aligns, result_row
from mergeline.grid import Cell, folder_of, load_cells, read_grid
from mergeline.plan import Plan
from mergeline.report.leaderboard import Leaderboard, Measured
from mergeline.report.result import RowScores
from mergeline.search.space import plan_at
from tasks.calibrations import Calibrations
from tasks.checkpoints import download_checkpoint
from tasks.evaluation import evaluate
from tasks.job import Job
from tasks.leaderboard import begin_comparison, identity_of, publish_leaderboard, record_comparison
from tasks.progress import Progress
from tasks.recording import Part
from tasks.runners import plan_flow


@plan_flow("compare-methods")
def compare_methods(plan: Plan, cells: Sequence[Cell]) -> Leaderboard:
    """One run per cell and repeat, one after the other; what they share is computed by the first and cached."""
    choose, identity = plan.compare and plan.compare.choose, identity_of(plan, cells)
    begin_comparison(plan, identity)
    measured = []
    for cell in tqdm(cells, desc="cells", unit="cell", disable=None):
        made = searched(cell.plan) if cell.plan.search else cell.plan
        tried = scores_on(made, choose.split) if choose else None
        part = Part(whole=identity, name=cell.name, repeat=cell.repeat)
        found = merge_and_evaluate(made, part).comparison
        measured.append(Measured(cell=cell, scores=found.result, tried=tried, beside=found.beside_calibrated))
    leaderboard = Leaderboard.of(plan, measured)
    files = publish_leaderboard(plan, leaderboard)
    record_comparison(plan, leaderboard, files, identity)
    return leaderboard


def scores_on(plan: Plan, split: str) -> RowScores:
    """What the result of a plan scores on other data of its tasks, as it would be published: calibrated, and with the
    tasks' own heads in its unit order. Nothing of it is published or recorded."""
    job, progress, row = Job(plan), Progress(), result_row(plan)
    sources = {spec.name: download_checkpoint.submit(**job.source(spec)) for spec in plan.checkpoints}
    checkpoints = progress.results("download", sources)
    aligned = align_families(job, plan.align, checkpoints, progress) if plan.align and aligns(plan) else None
    alignment = aligned.alignment if aligned else None
    inputs = job.merge_inputs(row, checkpoints, alignment)
    merged, _ = merge_rows(job, {row.name: row}, {row.name: inputs}, progress)
    calibrations = Calibrations(job, plan.calibrate, checkpoints) if plan.calibrate else None
    merged, _ = calibrate_models(calibrations, merged, {row.name: inputs}, progress)
    call = job.evaluation(row, checkpoints, merged, job.domains_on(split), alignment)
    return progress.results("choose", {row.name: evaluate.submit(**call)})[row.name]


def searched(cell: Plan) -> Plan:
    """The cell with the best coefficients of a search, which is not recorded: it only chooses."""
    aside = cell.model_copy(update={"tracking": cell.tracking.model_copy(update={"enabled": False})})
    return plan_at(cell, search_coefficients(aside, cell.output.parent / "searched" / cell.output.name).point)


def main() -> int:
    """Exit status 0, 1 where it failed, 2 for bad input, 130 where it was stopped."""
    work = partial(_compare, _parser().parse_args())
    return exit_status(work, what="the comparison", again="the same command again takes what was done from the cache")


def _compare(options: argparse.Namespace) -> None:
    from mergeline.plan_file import load_plan

    plan = load_plan(options.params, options.set)
    cells = load_cells(options.params, options.set, read_grid(options.grid))
    quiet_prefect()
    leaderboard = compare_methods(plan, cells)
    print("\n".join(leaderboard.lines()))
    print(f"  the table, the picture and metrics.json: {folder_of(plan)}")


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
