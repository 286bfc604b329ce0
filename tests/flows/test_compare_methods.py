"""A comparison as it is run: files, and one run per cell within one run of the whole in a real MLflow store."""

import csv
import json

import pytest
import yaml
from mlflow import MlflowClient

from flows.compare_methods import compare_methods
from mergeline.grid import folder_of, load_cells
from mergeline.plan_file import load_plan
from tasks.leaderboard import identity_of
from tests.flows.conftest import ROOT

pytestmark = pytest.mark.flow
PCB = "{method: pcb, variant: pairwise, keep_ratio: 0.3, scale: 1.0}"
CELLS = ", ".join(
    [
        "averaged: {merge: {method: average}}",
        f"PCB: {{merge: {PCB}}}",
        f"best: {{merge: {PCB}, search: {{trials: 2}}}}",
    ]
)
DRAWS = "{draw: [{calibration: {sample: 60, draw: 0}}, {calibration: {sample: 60, draw: 1}}]}"


def compared(project, *overrides):
    """Three cells of team A on two draws of the calibration pictures, compared."""
    wanted = [
        f"output={project / 'out' / 'merged'}",
        "tracking.experiment=compared",
        "search={over: [scale], scale: {low: 0.5, high: 1.5}, metric: mean}",
        f"compare={{cells: {{{CELLS}}}, over: {DRAWS}, choose: {{split: validation}}}}",
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


def test_the_leaderboard_is_tables_numbers_and_a_picture(comparison):
    plan, _, leaderboard = comparison
    folder = folder_of(plan)
    rows = list(csv.DictReader((folder / "leaderboard.csv").open()))
    assert [row["cell"] for row in rows] == [row.cell for row in leaderboard.rows]
    assert {row["cell"]: row["merge.method"] for row in rows} == {"averaged": "average", "PCB": "pcb", "best": "pcb"}
    assert [row["chosen"] for row in rows] == ["yes"] * 3, "one of every method"
    assert float(rows[0]["mean"]) >= float(rows[1]["mean"])
    repeats = list(csv.DictReader((folder / "repeats.csv").open()))
    assert [(row["repeat"], row["cell"]) for row in repeats] == [
        (repeat, row["cell"]) for repeat in ("draw, 1", "draw, 2") for row in rows
    ]
    assert len({row["mean"] for row in repeats if row["cell"] == "averaged"}) == 2, (
        "of other pictures, other statistics"
    )
    assert json.loads((folder / "metrics.json").read_text()) == leaderboard.metrics()
    assert (folder / "leaderboard.png").stat().st_size > 1000


def test_a_searched_cell_is_at_the_best_of_its_trials(comparison):
    plan, cells, leaderboard = comparison
    folder = folder_of(plan)
    scores = {row.cell: row for row in leaderboard.rows}
    assert scores["best"].choice.value >= scores["PCB"].choice.value, "the search begins with the scale of the plan"
    assert scores["best"].settings["merge.scale"] == "searched" and scores["PCB"].settings["merge.scale"] == 1.0
    for cell in cells[-2:]:
        (file,) = (cell.plan.output.parent / "searched" / cell.plan.output.name).iterdir()
        assert folder in file.parents
        assert 0.5 <= yaml.safe_load(file.read_text())["merge"]["scale"] <= 1.5


def test_every_cell_in_every_repeat_is_a_run_within_the_run_of_the_comparison(comparison, project):
    plan, cells, leaderboard = comparison
    client, (whole,), parts = runs(project)
    assert whole.info.run_name == f"{plan.name} comparison" and whole.info.status == "FINISHED"
    assert whole.data.metrics["best/mean"] == pytest.approx(leaderboard.best.mean.value)
    assert whole.data.metrics["repeats"] == 2
    assert {file.path for file in client.list_artifacts(whole.info.run_id)} == {
        *("leaderboard.csv", "repeats.csv", "leaderboard.png", "metrics.json")
    }
    assert len(parts) == len(cells) == 6, "what only chose is not recorded"
    assert {run.data.tags["mlflow.parentRunId"] for run in parts} == {whole.info.run_id}
    names = {run.info.run_name: (run.data.tags["mergeline.cell"], run.data.tags["mergeline.repeat"]) for run in parts}
    assert names == {f"{cell.name}, {cell.repeat}": (cell.name, cell.repeat) for cell in cells}


def test_a_comparison_that_is_repeated_is_recorded_once_and_another_one_apart(comparison, project):
    before = {run.info.run_id for found in runs(project)[1:] for run in found}
    plan, cells, leaderboard = compared(project)
    assert leaderboard == comparison[2]
    assert {run.info.run_id for found in runs(project)[1:] for run in found} == before
    longer = {"search": cells[-1].plan.search.model_copy(update={"trials": 3})}
    other = cells[-1].model_copy(update={"plan": cells[-1].plan.model_copy(update=longer)})
    assert identity_of(plan, cells) != identity_of(plan, [*cells[:-1], other]), "its search counts"
