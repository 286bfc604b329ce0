"""The report of a run as a Markdown page: what was merged, what each stage did, and how good the result is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mergeline.checkpoints.transfer import shown
from mergeline.comparison import RESULT
from mergeline.evaluation.kinds import shown as shown_score
from mergeline.merging import registry
from mergeline.plan import Plan
from mergeline.report.calibration import calibration_lines
from mergeline.report.result import Comparison
from mergeline.report.table import markdown_table, own_table, words_of


@dataclass(frozen=True)
class Facts:
    """What the stages found, for the report.

    digests: sha256 of every checkpoint. objective: mean matched similarity after each sweep; matched: the same for
    each unit group at the end (both empty: nothing was aligned). coefficients: what the method's statistics say, or {}.
    balances: what a search for the balance tried ({"balance", "metric", "split", "tried": {balance: score}}), or {}.
    calibration: the record of a calibration (`CalibrationRecord.as_dict`), or {}.
    """

    digests: Mapping[str, str]
    objective: Sequence[float]
    matched: Mapping[str, float]
    coefficients: Mapping[str, Any]
    balances: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)


def report_page(plan: Plan, comparison: Comparison, facts: Facts, chart: str, more: Sequence[str] = ()) -> str:
    """Markdown of the whole report; `chart` is the picture's file name beside it, `more` are further sections."""
    sections = [
        f"# {plan.name}",
        *(_measured(plan, comparison, chart) if comparison.rows else ["Merged; there are no tasks to measure it on."]),
        f"## Checkpoints\n\n{_checkpoints(plan, facts)}",
        f"## What each stage did\n\n{_stages(plan, comparison, facts)}",
        *more,
    ]
    return "\n\n".join(sections) + "\n"


def _measured(plan: Plan, comparison: Comparison, chart: str) -> list[str]:
    measured = words_of(comparison).partition(" (")[0].removesuffix(" in %")
    picture = f"![{measured} of every row]({chart})"
    own = own_table(comparison)
    beside = [own, _reading_own()] if own else []
    return [_verdict(plan, comparison), picture, markdown_table(comparison), _reading(plan, comparison), *beside]


def _verdict(plan: Plan, comparison: Comparison) -> str:
    """One sentence that compares the result with the best single task model and with the best other row."""
    result = comparison.result
    models = {name for model in plan.task_models for name in (model.name, f"{model.name}-reset")}
    singles = [row for row in comparison.rows if row.name in models]
    unit, joint = result.mean.unit, f" and {result.joint} % jointly" if result.joint else ""
    text = f"The merged model ({result.label}) reaches {result.mean}{unit} over the tasks{joint}."
    if singles:
        best = max(singles, key=lambda row: row.mean.goodness)
        text += f" The best single task model over the same tasks is {best.label} with {best.mean}{unit}."
    better = [row for row in comparison.rows if row.name != RESULT and row.mean.goodness > result.mean.goodness]
    names = ", ".join(f"{row.label} ({row.mean}{unit})" for row in better)
    if better:
        return f"{text} Rows above it: {names}."
    return text + (" No other row is above it." if len(comparison.rows) > 1 else "")


def _reading(plan: Plan, comparison: Comparison) -> str:
    count = sum(score.count for score in comparison.result.tasks.values())
    words, counted = words_of(comparison), "tokens" if comparison.result.mean.measure == "perplexity" else "examples"
    together = "; *joint*: all classes at once, mean over the domains" if comparison.result.joint else ""
    of_tasks = "every task among its own classes" if comparison.result.joint else "every task counts the same"
    reset = (
        " Merged models, the ensemble and rows marked *reset* have their normalisation statistics measured on "
        "unlabelled calibration data of the domain at hand; other task models and bases are as they were trained."
    )
    return (
        f"{words[0].upper()}{words[1:].replace('%', 'percent')} with its standard error. *mean of tasks*: {of_tasks}"
        f"{together}. {count} test {counted} in all.{reset if plan.calibration else ''} The standard errors are "
        "those of the test examples: they say nothing about other training seeds, which move such results by several "
        "points."
    )


def _reading_own() -> str:
    return (
        "Each task beside the model that was trained for it, the better of as trained and *reset*. *change*: points "
        "of the score; *normalised*: the share of the own model's score that is kept (of a perplexity the own "
        "model's over the merged model's), in percent. Standard errors as "
        "of independent measurements; both models answered the same examples, so the true ones are mostly smaller."
    )


def _checkpoints(plan: Plan, facts: Facts) -> str:
    lines = ["| checkpoint | from | base | sha256 |", "| --- | --- | --- | --- |"]
    for spec in plan.checkpoints:
        lines.append(f"| {spec.name} | `{shown(spec.uri)}` | {spec.base or ''} | `{facts.digests[spec.name][:12]}` |")
    return "\n".join(lines)


def _stages(plan: Plan, comparison: Comparison, facts: Facts) -> str:
    lines = [f"- **Download**: {len(plan.checkpoints)} checkpoints, digests as above."]
    if facts.matched and plan.align and plan.calibration:
        weakest = min(facts.matched, key=lambda group: facts.matched[group])
        sweeps = ", ".join(f"{value:.4f}" for value in facts.objective) or "no sweeps in activation space alone"
        lines += [
            f"- **Activations** of {' and '.join(plan.families)} on `{plan.calibration.split}`, and the similarity of "
            f"all {len(facts.matched)} groups of units in weight and activation space.",
            f"- **{'Zip' if plan.align.method == 'zip' else 'Permutations'}** in {plan.align.space} space (balance "
            f"{facts.balances.get('balance', plan.align.balance)}): mean matched similarity after each sweep {sweeps}; "
            f"weakest group `{weakest}` with {facts.matched[weakest]:.3f}.",
        ]
        if facts.balances:
            tried = ", ".join(
                f"{balance} {shown_score(score, plan.measure, 1)}" for balance, score in facts.balances["tried"].items()
            )
            of = "accuracy" if plan.measure == "share" else plan.measure
            lines.append(
                f"- **Balance search** by {facts.balances['metric']} {of} on `{facts.balances['split']}`: {tried}."
            )
    else:
        lines.append("- **Alignment**: none needed, all task models share one base, or switched off.")
    whole = facts.coefficients.get("model", {})
    if bounds := whole.get("clip_high"):
        pairs = zip(plan.task_models, bounds, whole["threshold"], strict=True)
        rows = "; ".join(f"{model.name} |tau| <= {bound:.2e}, score > {score:.2f}" for model, bound, score in pairs)
        lines.append(f"- **PCB coefficients**: magnitudes are clipped and scores up to a threshold dropped: {rows}.")
    if evidence := registry.get(plan.merge.method).evidence:
        what = registry.EVIDENCE[evidence]
        lines.append(f"- **Evidence**: {what} of each model, on `{plan.merge.evidence.split}` data of its tasks.")
    options = ", ".join(f"{key} {value}" for key, value in (plan.merge.options | plan.merge.grouping).items())
    lines.append(f"- **Merge**: {plan.merge.method}{f' ({options})' if options else ''}, onto the {plan.merge.onto}.")
    lines += calibration_lines(plan, comparison, facts.calibration)
    if plan.tasks:
        lines.append(f"- **Evaluation**: {len(plan.tasks)} tasks.")
    return "\n".join(lines)
