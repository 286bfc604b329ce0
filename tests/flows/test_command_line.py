"""The options of the main flow's command, with a flow that does nothing."""

import logging
import sys
from pathlib import Path

import pytest
from prefect.settings import PREFECT_TASKS_REFRESH_CACHE

from flows import command_line
from mergeline.plan import Plan
from mergeline.report.result import Comparison
from tasks.progress import StageCount
from tasks.recording import Outcome, Recorded


@pytest.mark.parametrize(("options", "fresh"), [([], False), (["--fresh"], True)])
def test_fresh_is_for_this_run_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: Path, options: list[str], fresh: bool
) -> None:
    seen = []

    def flow(plan: Plan) -> Outcome:
        seen.append(PREFECT_TASKS_REFRESH_CACHE.value())
        logging.getLogger("tasks.tracking").warning("MLflow is down")
        recorded = Recorded(flow_run="1", mlflow_run=None, mlflow_page=None)
        return Outcome(
            comparison=Comparison(plan="p", rows=[]), stages=StageCount(total=1, cached=0), recorded=recorded
        )

    monkeypatch.setattr(sys, "argv", ["merge_and_evaluate", "--no-table", *options])
    monkeypatch.setattr(command_line, "save_links", lambda *_: None)
    assert command_line.run(flow) == 0
    assert seen == [fresh]
    assert PREFECT_TASKS_REFRESH_CACHE.value() is False
    assert "1 stages, 0 of them from the cache" in capsys.readouterr().out
