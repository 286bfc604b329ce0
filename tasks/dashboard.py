"""What Prefect's pages show of a run: its progress, the result table, and links to the report and to MLflow.

All of it is for people alone. Where it cannot be written, a run says so once and goes on.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from mergeline.comparison import comparison_rows
from mergeline.redaction import redact
from tasks.merging import competes, has_statistics

if TYPE_CHECKING:
    from mergeline.plan import Plan
    from mergeline.report.result import Comparison
    from tasks.recording import Outcome, Recorded

log = logging.getLogger(__name__)

PREFECT_UI, MLFLOW_UI = "http://127.0.0.1:4200", "http://127.0.0.1:5000"
BETWEEN_UPDATES = 1.0  # seconds: an update costs 0.06


def artifact_key(plan: str, what: str) -> str:
    """The name of an artifact: those of one plan and kind are versions of each other."""
    return re.sub(r"[^a-z0-9]+", "-", f"{plan}-{what}".lower()).strip("-")


def pages(recorded: Recorded) -> dict[str, str]:
    """The addresses of a run on the pages of MLflow and Prefect."""
    prefect = os.environ.get("PREFECT_API_URL", f"{PREFECT_UI}/api").removesuffix("/api")
    mlflow = os.environ.get("MLFLOW_TRACKING_URI", "")
    mlflow = (mlflow if mlflow.startswith("http") else MLFLOW_UI).rstrip("/")
    links = {"Prefect": f"{prefect}/runs/flow-run/{recorded.flow_run}"}
    if recorded.mlflow_page:
        links = {"MLflow": f"{mlflow}/{recorded.mlflow_page}"} | links
    return {name: redact(link) for name, link in links.items()}


def show_outcome(plan: Plan, outcome: Outcome) -> Outcome:
    """The table and the links of a run that was published; returns the outcome."""
    from prefect.artifacts import create_link_artifact

    from mergeline.report.table import words_of

    with _never_mind("the result"):
        report = (plan.output / "report.html").resolve()
        create_link_artifact(report.as_uri(), str(report), key=artifact_key(plan.name, "report"))
        if page := pages(outcome.recorded).get("MLflow"):
            create_link_artifact(page, "the run in MLflow", key=artifact_key(plan.name, "mlflow"))
        if outcome.comparison.rows:
            about = f"{plan.name}: {words_of(outcome.comparison)} ± standard error; published into {plan.output}"
            show_table(plan.name, "result", table(outcome.comparison), about)
    return outcome


def show_table(plan: str, what: str, rows: Sequence[Mapping[str, Any]], about: str) -> None:
    """A table of its own on the page of the run."""
    from prefect.artifacts import create_table_artifact

    with _never_mind(f"the {what}"):
        create_table_artifact([dict(row) for row in rows], artifact_key(plan, what), about)


def table(comparison: Comparison) -> list[dict[str, str]]:
    """The result table, row by row."""
    from mergeline.report.table import cells, header

    return [dict(zip(header(comparison), cells(row), strict=True)) for row in comparison.rows]


class ProgressArtifact:
    """The share of a plan's stages that are done, as far as they can be foretold; updated once a second at most."""

    def __init__(self, plan: Plan, clock: Callable[[], float] = time.monotonic) -> None:
        self._plan, self._clock = plan, clock
        self._expected = expected_stages(plan)
        self._artifact: UUID | None = None
        self._share, self._next, self._working = 0.0, 0.0, True

    def update(self, done: int, submitted: int, what: str = "") -> None:
        """It never goes back, and reaches 100 % by `finish` alone."""
        self._share = max(self._share, min(99.0, 100.0 * done / max(submitted, self._expected)))
        if self._clock() >= self._next:
            self._write(what)
            self._next = self._clock() + BETWEEN_UPDATES

    def finish(self) -> None:
        """All is done."""
        self._share = 100.0
        self._write("done")

    def _write(self, what: str) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact
        from prefect.context import FlowRunContext

        if not self._working or FlowRunContext.get() is None:
            return
        self._working = False  # unless this works: a server that is lost is not asked again and again
        with _never_mind("the progress"):
            if self._artifact is None:
                key = artifact_key(self._plan.name, "progress")
                made = create_progress_artifact(self._share, key, f"{self._plan.name}: {what}")
                self._artifact = made if isinstance(made, UUID) else UUID(str(made))
            else:
                about = f"{self._plan.name}: {what}"
                update_progress_artifact(self._artifact, self._share, description=about)
            self._working = True


def expected_stages(plan: Plan) -> int:
    """About how many stages a run has; ranges, and what data the tasks share, show when it runs."""
    rows = comparison_rows(plan)
    merges = [row for row in rows if row.kind == "merge"]
    aligning = 5 + len(plan.families) if any(row.aligned for row in merges) else 0
    measuring = len(rows) + len({task.domain for task in plan.tasks}) + 1 if plan.tasks else 0
    shown = any(row.aligned for row in merges) + competes(plan.merge)
    return len(plan.checkpoints) + aligning + measuring + shown + sum(1 + has_statistics(row.merge) for row in merges)


@contextmanager
def _never_mind(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        log.warning("%s cannot be shown on Prefect's pages: %s", what, error)
