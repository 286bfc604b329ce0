"""A comparison as it is run: files, and one run per cell within one run of the whole in a real MLflow store."""

import csv
import json

import pytest
from mlflow import MlflowClient

from flows.compare_methods import compare_methods
from mergeline.grid import folder_of, load_cells
from mergeline.plan_file import load_plan
from tasks.leaderboard import identity_of
from tests.flows.conftest import ROOT

pytestmark = pytest.mark.flow
CELLS = "{averaged: {merge: {method: average}}, PCB: {merge: {method: pcb, variant: pairwise, keep_ratio: 0.3}}}"


def compared(project, *overrides):
    """The two cells of team A, compared."""
    wanted = [
        f"output={project / 'out' / 'merged'}",
        "tracking.experiment=compared",
        f"compare={{cells: {CELLS}, choose: {{split: validation}}}}",
        *overrides,
    ]
    path = project / "team.yaml"
    if not path.exists():
        plan = (ROOT / "params.yaml").read_text()
        left_out = ("  - {name: base-b", "  - {name: b-half", "  - {name: half-")
        path.write_text("\n".join(line for line in plan.splitlines() if not line.startswith(left_out)))
    plan = load_plan(path, wanted)
    return plan, load_cells(path, wanted), compare_methods(plan, load_cells(path, wanted))


def runs(project):
    client = MlflowClient(f"sqlite:///{project / '.mlflow' / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("compared").experiment_id])
    wholes = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    return client, wholes, [run for run in found if "mlflow.parentRunId" in run.data.tags]


@pytest.fixture(scope="module")
def comparison(project):
    return compared(project)


def test_the_leaderboard_is_a_table_numbers_and_a_picture(comparison):
    plan, _, leaderboard = comparison
    folder = folder_of(plan)
    rows = list(csv.DictReader((folder / "leaderboard.csv").open()))
    assert [row["cell"] for row in rows] == [row.cell for row in leaderboard.rows]
    assert {row["cell"]: row["merge.method"] for row in rows} == {"averaged": "average", "PCB": "pcb"}
    assert [row["chosen"] for row in rows] == ["yes", "yes"], "one of every method"
    assert float(rows[0]["mean"]) >= float(rows[1]["mean"]) and float(rows[0]["mean ±"]) > 0
    assert json.loads((folder / "metrics.json").read_text()) == leaderboard.metrics()
    assert (folder / "leaderboard.png").stat().st_size > 1000


def test_every_cell_is_a_run_within_the_run_of_the_comparison(comparison, project):
    plan, cells, leaderboard = comparison
    client, (whole,), parts = runs(project)
    assert whole.info.run_name == f"{plan.name} comparison" and whole.info.status == "FINISHED"
    assert whole.data.metrics["best/mean"] == pytest.approx(leaderboard.best.mean.value)
    assert {file.path for file in client.list_artifacts(whole.info.run_id)} == {
        *("leaderboard.csv", "leaderboard.png", "metrics.json")
    }
    assert len(parts) == len(cells), "what only chose is not recorded"
    assert {run.data.tags["mlflow.parentRunId"] for run in parts} == {whole.info.run_id}
    methods = {run.info.run_name: run.data.params["merge.method"] for run in parts}
    assert methods == {"averaged": "average", "PCB": "pcb"}


def test_a_comparison_that_is_repeated_is_recorded_once_and_another_one_apart(comparison, project):
    before = {run.info.run_id for found in runs(project)[1:] for run in found}
    plan, cells, leaderboard = compared(project)
    assert leaderboard == comparison[2]
    assert {run.info.run_id for found in runs(project)[1:] for run in found} == before
    other = {name: cell.model_copy(update={"name": "other"}) for name, cell in cells.items()}
    assert identity_of(plan, cells) != identity_of(plan, other)
