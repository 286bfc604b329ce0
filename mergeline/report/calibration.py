"""What a report says about a calibration: that it is distillation, how much it brings, and what it changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergeline.comparison import CONTROL_DATA, CONTROLS, RESULT, UNCALIBRATED
from mergeline.plan import Plan
from mergeline.plan_after import Calibrate
from mergeline.report.result import Comparison, RowScores

WORST = 5
"""Layers that are named."""


def calibration_lines(plan: Plan, comparison: Comparison, record: Mapping[str, Any]) -> list[str]:
    """Bullets of the report; none where nothing was calibrated. record: `CalibrationRecord.as_dict`."""
    if plan.calibrate is None or not record:
        return []
    lines = [f"- **Calibration**: {summary(plan, comparison, record)}"]
    if record["layers"]:
        lines.append(f"- **Refit layers**: {_layers(record)}")
    if record["kept"]:
        kept = "; ".join(f"`{name}` {why}" for name, why in record["kept"].items())
        lines.append(f"- **Layers that kept their merged weights**: {kept}.")
    return lines + [f"- **Warning**: {sentence}." for sentence in record["warnings"]]


def summary(plan: Plan, comparison: Comparison, record: Mapping[str, Any]) -> str:
    """What was done, that it is distillation, and what it brings; empty where nothing was calibrated."""
    if plan.calibrate is None or not record:
        return ""
    return f"{_what_it_is(plan.calibrate, record)} {_gain(comparison)}".rstrip()


def calibration_steps(options: Calibrate) -> str:
    """What the options that are on do to the merged model, in plain words."""
    steps = []
    if options.layers:
        steps.append("every layer refit to what the task models give there")
    if options.last_layer != "none":
        target = (
            "the mean of the task models' outputs"
            if options.last_layer == "mean"
            else "what the task models' heads say"
        )
        steps.append(f"the last layer refit to {target}")
    if options.centre:
        steps.append("the mean output subtracted, which assumes that the classes are equally frequent in the inputs")
    return f"{', '.join(steps)} (ridge {options.ridge:g})"


def _what_it_is(options: Calibrate, record: Mapping[str, Any]) -> str:
    return (
        f"this is closed-form distillation of the task models on {record['images']} unlabelled inputs, not merging: "
        f"{calibration_steps(options)}. After a refit of all layers the alignment hardly matters any "
        "more, and on easy data even a ridge on raw inputs scores high."
    )


def calibration_metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """Plain numbers for the record of a run: what was missing per layer before and after, and the condition."""
    return {
        f"{what}/{layer['name'].replace(' + ', '-and-')}": layer[what]
        for layer in record.get("layers", ())
        for what in ("before", "after", "condition")
    }


def _gain(comparison: Comparison) -> str:
    rows = {row.name: row for row in comparison.rows}
    if UNCALIBRATED not in rows or RESULT not in rows:
        return ""
    before, after = rows[UNCALIBRATED], rows[RESULT]
    return (
        f"Of the result {_scores(before)} are the merge's own; calibration makes them {_scores(after)}."
        f"{_controls(rows)}"
    )


def _scores(row: RowScores) -> str:
    """The mean over the tasks, and joint accuracy where there is such."""
    joint = f" and {row.joint} % jointly" if row.joint else ""
    return f"{row.mean}{row.mean.unit} over the tasks{joint}"


def _controls(rows: Mapping[str, RowScores]) -> str:
    """What the same calibration makes of models that were not merged well, a ridge of no model, and what other data."""
    found = [rows[name] for name in CONTROLS if name in rows and name != CONTROL_DATA]
    told = "; ".join(f"{_control(row)} {_scores(row)}" for row in found)
    sentence = f" Controls show how much of that needs no good merge: {told}." if told else ""
    if CONTROL_DATA in rows:
        other = rows[CONTROL_DATA]
        sentence += f" With data of another domain, {_control(other)}: {_scores(other)}."
    return sentence


def _control(row: RowScores) -> str:
    return row.label.removeprefix("control: ")


def _layers(record: Mapping[str, Any]) -> str:
    layers = record["layers"]
    worst = sorted(layers, key=lambda layer: -layer["after"])[:WORST]
    named = "; ".join(f"`{layer['name']}` {layer['before']:.3f} → {layer['after']:.3f}" for layer in worst)
    condition = max(layer["condition"] for layer in layers)
    return (
        f"{len(layers)}. Share of the target's variance that is missing before and after, the worst: {named}. Largest "
        f"condition number {condition:.1e}; all layers are in calibration.json."
    )
