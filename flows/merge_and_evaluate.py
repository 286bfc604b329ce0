"""The main job: download, align, balance, merge, evaluate, publish. `python -m flows.merge_and_evaluate --help`"""

from __future__ import annotations

import sys
from typing import Any

from mergeline.comparison import (
    CONTROL_RANDOM,
    RESULT,
    UNCALIBRATED,
    Row,
    aligns,
    is_merged,
    result_row,
)
from mergeline.plan import Align, BalanceSearch, Plan
from mergeline.report.result import RowScores, comparison_of
from tasks.activations import collect_activations
from tasks.architecture import prove_symmetry
from tasks.calibration import calibrate_model
from tasks.calibrations import Calibrations
from tasks.chart import draw_comparison
from tasks.checkpoints import download_checkpoint
from tasks.dashboard import show_outcome
from tasks.evaluation import evaluate
from tasks.evidence import collector, each
from tasks.exporting import export_model
from tasks.families import represent_family
from tasks.findings import Aligned, map_similarity
from tasks.heads import take_head
from tasks.job import Job
from tasks.landscape import draw_landscape, lay_plane, measure_losses
from tasks.merge_inputs import MergeInputs
from tasks.merging import (
    competes,
    given_up_where_at_fault,
    has_statistics,
    merge_models,
    merge_range,
    merge_statistics,
)
from tasks.normalization import measure_normalization, reset_normalization
from tasks.permutations import choose_balance, draw_permutations, solve_permutations
from tasks.progress import Progress
from tasks.publishing import Made, publish_run
from tasks.raw_ridge import evaluate_ridge
from tasks.recording import Outcome, Part, record_run
from tasks.runners import plan_flow
from tasks.similarity import activation_similarity, weight_similarity
from tasks.store import ArtifactRef, put_json
from tasks.survey import Survey
from tasks.winners import count_winners


@plan_flow("merge-and-evaluate")
def merge_and_evaluate(plan: Plan, part: Part | None = None) -> Outcome:
    """Download, align, balance, merge, evaluate, publish. part: which cell of a comparison this is."""
    job, progress = Job(plan), Progress(plan)
    sources = {spec.name: download_checkpoint.submit(**job.source(spec)) for spec in plan.checkpoints}
    checkpoints = progress.results("download", sources)
    aligned = align_families(job, plan.align, checkpoints, progress) if plan.align and aligns(plan) else None
    alignment = aligned.alignment if aligned else None

    rows = job.rows
    merges = {
        name: job.merge_inputs(row, checkpoints, aligned.of(row) if aligned else None)
        for name, row in rows.items()
        if is_merged(row)
    }
    merged, coefficients = merge_rows(job, rows, merges, progress)
    calibrations = Calibrations(job, plan.calibrate, checkpoints) if plan.calibrate else None
    merged, record = calibrate_models(calibrations, merged, merges, progress)
    resets = [name for name in (UNCALIBRATED, RESULT) if name in merged and job.calibrates]
    calibrated = {name: reset_normalization.submit(**job.reset(merged[name])) for name in resets}
    statistics = {
        domain.name: measure_normalization.submit(**job.calibrated(merged[RESULT], domain))
        for domain in job.calibrated_domains
    }
    rows_measured = measure_rows(job, calibrations, checkpoints, merged, aligned, progress) if plan.tasks else []
    comparison = comparison_of(plan, rows_measured)
    normalization = progress.results("normalise", statistics)
    published = merged | progress.results("normalise", calibrated)
    model = published[RESULT]
    heads = {task: take_head.submit(**call) for task, call in job.heads_to_publish(checkpoints, alignment).items()}
    programs = {kind: export_model.submit(**call) for kind, call in job.exports(model).items()}
    seen = {"maps": map_similarity.submit(**aligned.mapped(plan.align))} if aligned and plan.align else {}
    if competes(plan.merge) and RESULT in coefficients:
        seen["winners"] = count_winners.submit(**job.competition(rows[RESULT], merges[RESULT], coefficients[RESULT]))
    surveyed = Survey(job, plan.landscape, checkpoints, merged[RESULT], aligned) if plan.landscape else None
    made = Made(
        checkpoints=checkpoints,
        datasets=job.datasets,
        alignment=alignment,
        coefficients=coefficients.get(RESULT),
        model=model,
        normalization=normalization,
        heads=progress.results("head", heads),
        uncalibrated=published.get(UNCALIBRATED),
        calibration=record,
        exports=progress.results("export", programs),
        findings=progress.results("report", seen),
        landscape=survey_landscape(surveyed, progress) if surveyed else None,
    )
    drawn = put_json(comparison.model_dump(mode="json"), "comparison")
    charts = {"chart": draw_comparison.submit(drawn)} if comparison.rows else {}
    report = publish_run(plan, made, comparison, progress.results("draw", charts).get("chart"))
    recorded = record_run(plan, made, comparison, report, progress.count(), part)
    outcome = Outcome(comparison=comparison, stages=progress.count(), recorded=recorded)
    progress.finish()
    return show_outcome(plan, outcome)


def calibrate_models(
    calibrations: Calibrations | None,
    merged: dict[str, ArtifactRef],
    merges: dict[str, MergeInputs],
    progress: Progress,
) -> tuple[dict[str, ArtifactRef], ArtifactRef | None]:
    """The merged models, the result and its controls calibrated, and the record of that; unchanged without a plan of
    it. merges: the inputs of the merged models."""
    if calibrations is None:
        return merged, None
    calls = calibrations.calls(merged, merges)
    found = progress.results("calibrate", {name: calibrate_model.submit(**call) for name, call in calls.items()})
    models = {name: one.model for name, one in found.items()}
    return merged | {UNCALIBRATED: merged[RESULT]} | models, found[RESULT].record


def measure_rows(
    job: Job,
    calibrations: Calibrations | None,
    checkpoints: dict[str, ArtifactRef],
    merged: dict[str, ArtifactRef],
    aligned: Aligned | None,
    progress: Progress,
) -> list[RowScores]:
    """The scores of all rows of the table; a ridge from raw inputs has a stage of its own."""
    scores = {}
    for name, row in job.rows.items():
        if row.kind == "ridge" and calibrations:
            scores[name] = evaluate_ridge.submit(**calibrations.ridge(row))
        else:
            alignment = aligned.of(row) if aligned else None
            scores[name] = evaluate.submit(**job.evaluation(row, checkpoints, merged, alignment=alignment))
    return list(progress.results("evaluate", scores).values())


def merge_rows(
    job: Job, rows: dict[str, Row], merges: dict[str, MergeInputs], progress: Progress
) -> tuple[dict[str, ArtifactRef], dict[str, ArtifactRef]]:
    """Every merged model, large ones in ranges; and the statistics of the methods that need some."""
    merges = measure_models(job, rows, merges, progress)
    gathered = {
        name: merge_statistics.submit(**job.statistics(rows[name], inputs))
        for name, inputs in merges.items()
        if has_statistics(rows[name].merge)
    }
    statistics = progress.results("balance", gathered)
    calls = {name: job.merge(rows[name], inputs, statistics.get(name)) for name, inputs in merges.items()}
    ranges = {
        f"{name} {part['number']}": merge_range.submit(**part)
        for name, call in calls.items()
        for part in job.ranges(call)
    }
    with given_up_where_at_fault(calls.values()):
        progress.results("merge", ranges)
    return progress.results("merge", {name: merge_models.submit(**call) for name, call in calls.items()}), statistics


def measure_models(
    job: Job, rows: dict[str, Row], merges: dict[str, MergeInputs], progress: Progress
) -> dict[str, MergeInputs]:
    """The inputs of every merge, with what its method must have measured of each model."""
    asked = {name: job.evidence(rows[name], inputs) for name, inputs in merges.items()}
    measured = {
        f"{name} {model}": collector(rows[name].merge).submit(**arguments)
        for name, models in asked.items()
        for model, arguments in models.items()
    }
    found = progress.results("measure", measured)
    evidence = {name: each(found[f"{name} {model}"] for model in models) for name, models in asked.items()}
    return {name: inputs.model_copy(update={"evidence": evidence[name]}) for name, inputs in merges.items()}


def align_families(job: Job, options: Align, checkpoints: dict[str, ArtifactRef], progress: Progress) -> Aligned:
    """Activations and weights of one model per family, their similarities, and the permutations that follow."""
    members = job.representatives(checkpoints).items()
    names = {name: represent_family.submit(name, models, **job.calibration_inputs) for name, models in members}
    families = list(progress.results("calibrate", names).values())
    symmetry = prove_symmetry.submit(**job.symmetry_rule)
    activations = collect_activations.submit(families, symmetry=symmetry, **job.calibration_inputs)
    weights = weight_similarity.submit(families, symmetry)
    responses = activation_similarity.submit(activations, len(families))
    arguments: dict[str, Any] = {"symmetry": symmetry, "weights": weights, "activations": responses}
    stages = {"symmetry": symmetry, "activations": activations, "weights": weights, "responses": responses}
    solved = {
        balance: solve_permutations.submit(families, options=tried, **arguments)
        for balance, tried in job.alignments(options).items()
    }
    drawn = {}
    if CONTROL_RANDOM in job.rows:
        drawn[CONTROL_RANDOM] = draw_permutations.submit(symmetry, len(families), options.seed)
    results = progress.results("align", stages | solved | drawn)
    alignments = {balance: results[balance] for balance in solved}
    if options.balance_search is None:
        chosen = alignments[str(options.balance)]
    else:
        chosen = search_balance(job, options.balance_search, alignments, checkpoints, progress)
    found = {"weights": results["weights"], "activations": results["responses"]}
    return Aligned(alignment=chosen, families=families, random=results.get(CONTROL_RANDOM), **found)


def survey_landscape(survey: Survey, progress: Progress) -> ArtifactRef:
    """The loss on the plane through task models and merged model, row by row, and on lines between models."""
    plane = progress.results("landscape", {"plane": lay_plane.submit(**survey.placing)})["plane"]
    calls = survey.rows(plane) | survey.lines
    measured = progress.results("landscape", {name: measure_losses.submit(**call) for name, call in calls.items()})
    drawn = draw_landscape.submit(**survey.drawing(plane, measured))
    return progress.results("draw", {"landscape": drawn})["landscape"]


def search_balance(
    job: Job,
    search: BalanceSearch,
    alignments: dict[str, ArtifactRef],
    checkpoints: dict[str, ArtifactRef],
    progress: Progress,
) -> ArtifactRef:
    """Merge with every alignment, score on data that does not measure the result, and take the best."""
    rows = {balance: result_row(job.plan, balance) for balance in alignments}
    merges = {balance: job.merge_inputs(row, checkpoints, alignments[balance]) for balance, row in rows.items()}
    merged, _ = merge_rows(job, rows, merges, progress)
    named = {row.name: merged[balance] for balance, row in rows.items()}
    evaluations = {
        balance: evaluate.submit(
            **job.evaluation(row, checkpoints, named, job.domains_on(search.split), alignments[balance])
        )
        for balance, row in rows.items()
    }
    scores = job.search_scores(search, progress.results("search", evaluations))
    return progress.results("choose", {"alignment": choose_balance.submit(alignments, scores, search)})["alignment"]


if __name__ == "__main__":
    from flows.command_line import run

    sys.exit(run(merge_and_evaluate))
