"""Tasks: write down what a comparison of cells came to, and record it in MLflow. Never cached."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from prefect import task

from mergeline.grid import Cell, folder_of
from mergeline.plan import WITHOUT_EFFECT, Plan
from mergeline.redaction import redact
from mergeline.report.leaderboard import Leaderboard, Value
from tasks.changes import fingerprint_or_none
from tasks.dashboard import show_table
from tasks.store import publish, put_file

TABLE, REPEATS, METRICS, CHART = "leaderboard.csv", "repeats.csv", "metrics.json", "leaderboard.png"


@task(name="publish-leaderboard")
def publish_leaderboard(plan: Plan, leaderboard: Leaderboard) -> list[Path]:
    """The ranking as a table (CSV), as numbers that DVC reads (JSON), as a picture, and on Prefect's pages; what
    is tried in several repeats has a table of these, too."""
    from mergeline.report.chart import draw_leaderboard

    folder, rows, repeats = folder_of(plan), leaderboard.table(), leaderboard.table_of_repeats()
    numbers = redact(json.dumps(leaderboard.metrics(), indent=1)) + "\n"
    files = {
        TABLE: put_file(partial(_write_table, rows), ".csv", "published"),
        METRICS: put_file(lambda draft: draft.write_text(numbers), ".json", "published"),
        CHART: put_file(lambda draft: draw_leaderboard(leaderboard, draft), ".png", "chart"),
    }
    if repeats:
        files[REPEATS] = put_file(partial(_write_table, repeats), ".csv", "published")
    for name, ref in files.items():
        publish(ref, folder / name)
    over = f", means over {len(leaderboard.repeats)} repeats" if repeats else ""
    about = f"{plan.name}: {len(leaderboard.ranks)} cells by {leaderboard.metric}, {leaderboard.words}{over}"
    show_table(plan.name, "leaderboard", rows, about)
    if repeats:
        show_table(plan.name, "repeats", repeats, f"{plan.name}: every cell in every repeat, {leaderboard.words}")
    return [folder / name for name in files]


def _write_table(rows: list[dict[str, Value]], draft: Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    draft.write_text(redact(text.getvalue()))


def identity_of(plan: Plan, cells: Sequence[Cell]) -> str:
    """The identity of the record of a comparison: the same for the same cells, data, checkpoints and code."""
    without = set(WITHOUT_EFFECT) - {"search"}
    said = [(cell.name, cell.repeat, cell.plan.model_dump_json(exclude=without)) for cell in cells]
    parts = [plan.name, str(folder_of(plan)), said, fingerprint_or_none(plan)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@task(name="begin-comparison")
def begin_comparison(plan: Plan, identity: str) -> None:
    """Open the run that the cells' own runs are parts of."""
    from tasks.tracking import Tracker

    if plan.tracking.enabled:
        params = {"compare": plan.compare.model_dump(mode="json") if plan.compare else {}}
        tags = {"mergeline.plan": plan.name}
        Tracker(plan.tracking.experiment).record(
            f"{plan.name} comparison", identity=identity, phase="begun", params=params, tags=tags
        )


@task(name="track-comparison")
def record_comparison(plan: Plan, leaderboard: Leaderboard, files: list[Path], identity: str) -> str | None:
    """Close that run: the leaderboard, and the scores of the best cell.

    Returns its id in MLflow; None where nothing is recorded, or not yet.
    """
    from tasks.tracking import Tracker

    if not plan.tracking.enabled:
        return None
    best = leaderboard.best
    return Tracker(plan.tracking.experiment).record(
        f"{plan.name} comparison",
        identity=identity,
        phase="ended",
        metrics={"cells": len(leaderboard.ranks), "repeats": len(leaderboard.repeats)}
        | {f"best/{name}": score.value for name, score in best.summary.items()}
        | {f"best/{name}_standard_error": score.standard_error for name, score in best.summary.items()}
        | {f"best/task/{task}": score.value for task, score in best.tasks.items()},
        artifacts=files,
        tags={"mergeline.best": leaderboard.rows[0].cell},
    )
