"""The search on the shipped data and checkpoints, against a real Prefect server and a real MLflow store."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from flows.search_coefficients import search_coefficients
from mergeline.plan_file import load_plan
from mergeline.report.result import RowScores

ROOT = Path(__file__).resolve().parent.parent.parent
TRIALS = 8

pytestmark = pytest.mark.flow


def state_of(patch, folder):
    patch.chdir(ROOT)
    patch.setenv("MERGELINE_STATE", str(folder))
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / '.mlflow' / 'mlflow.db'}")


@pytest.fixture(scope="module")
def project(tmp_path_factory, prefect_server):
    """The project's folder as working directory, with state of this module's own, shared by its tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("state")
        state_of(patch, folder)
        yield folder


def team(*overrides):
    """The two models of one base, which need no alignment; small batches of tasks make a trial fast."""
    plan = load_plan("params.yaml")
    models = [model.model_dump() for model in plan.checkpoints if "base-a" in (model.name, model.base)]
    tasks = [task.model_dump() for task in plan.tasks[:2]]
    return [f"checkpoints={json.dumps(models)}", f"tasks={json.dumps(tasks)}", f"search.trials={TRIALS}", *overrides]


def search(folder, *overrides, trials=()):
    return search_coefficients(load_plan("params.yaml", [*overrides, *trials], searched=True), folder)


def trials_in(state):
    """(number, parameters, value) of every trial in the storage, read without Optuna."""
    with sqlite3.connect(f"file:{state / '.search' / 'studies.db'}?mode=ro", uri=True) as file:
        values = dict(file.execute("select t.number, v.value from trials t join trial_values v using (trial_id)"))
        found = {number: {} for number in values}
        for number, name, value in file.execute(
            "select t.number, p.param_name, p.param_value from trials t join trial_params p using (trial_id)"
        ):
            found[number][name] = value
        assert {state for (state,) in file.execute("select state from trials")} <= {"COMPLETE"}
    return [(number, found[number], values[number]) for number in sorted(values)]


def recorded(run_id=None):
    """(the search's run, its children by the number of their trial)."""
    client = MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("mergeline").experiment_id
    runs = client.search_runs([experiment], max_results=1000)
    parents = [run for run in runs if "mergeline.search" in run.data.tags and run_id in (None, run.info.run_id)]
    assert len(parents) == 1
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    numbers = sorted(int(run.data.tags["mergeline.trial"]) for run in children)
    assert numbers == list(range(len(children)))
    return parents[0], {int(run.data.tags["mergeline.trial"]): run for run in children}


@pytest.fixture(scope="module")
def unbroken(project):
    """A search in one go."""
    return search(project / "best", *team())


def test_the_best_of_all_trials_is_written_as_part_of_a_plan(unbroken, project):
    trials = trials_in(project)
    assert len(trials) == unbroken.trials == TRIALS
    number, parameters, value = max(trials, key=lambda trial: (trial[2], -trial[0]))
    assert (unbroken.number, unbroken.value) == (number, value)
    assert unbroken.value >= unbroken.plan_value  # it begins with the plan
    assert unbroken.file == project / "best" / "two-teams.yaml"
    assert yaml.safe_load(unbroken.file.read_text()) == {"merge": {"scales": list(parameters.values())}}
    chosen = load_plan("params.yaml", [*team(), *unbroken.settings]).merge
    assert chosen.options == load_plan("params.yaml").merge.options | {"scales": list(parameters.values())}
    rows = unbroken.comparison.rows
    assert rows[0].label == "the plan itself"
    assert unbroken.comparison.result.joint.value == value
    assert rows[0].joint.value == unbroken.plan_value
    assert len({row.name for row in rows}) == len(rows) == 5


def test_the_best_merged_in_full_scores_the_same(unbroken, project):
    """Through the stages of the main job, on the split of the search."""
    from mergeline.comparison import RESULT, result_row
    from tasks.checkpoints import download_checkpoint
    from tasks.evaluation import evaluate
    from tasks.job import Job
    from tasks.merging import merge_models, merge_statistics

    plan = load_plan("params.yaml", [*team(), *unbroken.settings])
    job, row = Job(plan), result_row(plan)
    checkpoints = {spec.name: download_checkpoint(**job.source(spec)) for spec in plan.checkpoints}
    inputs = job.merge_inputs(row, checkpoints, None)
    merged = merge_models(RESULT, inputs, merge_statistics(**job.statistics(row, inputs)), row.merge)
    scores = evaluate(**job.evaluation(row, checkpoints, {RESULT: merged}, job.domains_on("validation")))
    found = unbroken.comparison.result
    assert isinstance(scores, RowScores)
    for task, score in scores.tasks.items():
        assert found.tasks[task].value == pytest.approx(score.value, abs=0.006)  # rounding may turn one picture of 200


def test_every_trial_is_a_child_of_one_run(unbroken, project):
    parent, children = recorded(unbroken.mlflow_run)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best/value"] == unbroken.value
    assert parent.data.metrics["plan/value"] == unbroken.plan_value
    assert parent.data.params["search.method"] == "cma"
    client = MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["two-teams.yaml"]
    history = client.get_metric_history(parent.info.run_id, "best so far")
    for number, parameters, value in trials_in(project):
        assert children[number].data.metrics["value"] == value
        assert children[number].data.params["merge.scales"] == str(list(parameters.values()))
        assert children[number].data.metrics["scale.a-clean-02478"] == parameters["scale.a-clean-02478"]
        assert [point.value for point in history if point.step == number] == [
            max(value for _, _, value in trials_in(project)[: number + 1])
        ]


def test_again_nothing_is_tried(unbroken, project):
    again = search(project / "again", *team())
    assert again.trials_before == TRIALS
    assert again.mlflow_run == unbroken.mlflow_run
    assert again.file.read_bytes() == unbroken.file.read_bytes()
    assert len(recorded(unbroken.mlflow_run)[1]) == TRIALS


def test_a_search_that_is_killed_goes_on_and_ends_the_same(unbroken, project, tmp_path, monkeypatch):
    from prefect.settings import PREFECT_API_URL

    expected = trials_in(project)
    state_of(monkeypatch, tmp_path)
    overrides = [argument for override in team() for argument in ("--set", override)]
    arguments = ["-m", "flows.search_coefficients", *overrides, "--output", str(tmp_path / "best")]
    environment = os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value(), "PYTHONPATH": str(ROOT)}
    log = (tmp_path / "log").open("w+")
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    while process.poll() is None and count_of(tmp_path) < 3:
        time.sleep(0.02)
    assert process.poll() is None, (tmp_path / "log").read_text()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = trials_in(tmp_path)
    assert 3 <= len(done) < TRIALS
    assert done == expected[: len(done)]
    assert recorded()[0].info.status == "RUNNING"
    outcome = search(tmp_path / "best", *team())
    assert outcome.trials_before == len(done)
    assert trials_in(tmp_path) == expected
    assert outcome.file.read_bytes() == unbroken.file.read_bytes()
    parent, children = recorded()
    assert parent.info.run_id == outcome.mlflow_run
    assert parent.info.status == "FINISHED"
    assert len(children) == TRIALS


def count_of(state):
    try:
        return len(trials_in(state))
    except sqlite3.OperationalError:  # not there yet
        return 0


def test_a_shorter_search_is_the_beginning_of_a_longer_one(unbroken, project):
    shorter = search(project / "shorter", *team(), "search.trials=4")
    assert (shorter.trials, shorter.trials_before) == (4, 4)
    first = trials_in(project)[:4]
    assert shorter.value == max(value for _, _, value in first)


def test_candidates_too_large_to_keep_are_merged_anew_each_time(unbroken, project):
    streamed = search(project / "streamed", *team("search.cache_gigabytes=0", "search.trials=3"))
    assert streamed.trials_before == 0
    assert streamed.plan_value == pytest.approx(unbroken.plan_value, abs=0.006)


def test_a_search_runs_on_the_workers_of_the_plan(unbroken, project, tmp_path, monkeypatch):
    dask = pytest.importorskip("dask", reason="pip install 'mergeline[dask]'")
    pytest.importorskip("prefect_dask", reason="pip install 'mergeline[dask]'")
    expected = trials_in(project)
    state_of(monkeypatch, tmp_path)
    (tmp_path / "known.py").write_text(f"open({str(tmp_path / 'worker')!r}, 'w')")
    with dask.config.set({"distributed.worker.preload": [str(tmp_path / "known.py")]}):
        search(tmp_path / "best", *team("search.trials=2", "runner=dask", "workers=1", "tracking.enabled=false"))
    assert (tmp_path / "worker").exists()
    assert trials_in(tmp_path) == expected[:2]


def test_keep_ratio_and_balance_are_searched_too(project):
    over = ["search.over=[keep_ratio, balance]", "search.keep_ratio=[0.2, 0.3]", "search.balance=[0.4, 0.5]"]
    outcome = search(project / "both", *over, "search.method=grid", "tracking.enabled=false")
    assert outcome.trials == 4
    assert outcome.mlflow_run is None
    found = yaml.safe_load(outcome.file.read_text())
    assert found["merge"].keys() == {"keep_ratio"}
    assert found["align"].keys() == {"balance"}
    assert outcome.value >= outcome.plan_value  # the plan is a point of this grid
    labels = [row.label for row in outcome.comparison.rows]
    assert all("keep_ratio=" in label and "align.balance=" in label for label in labels[1:])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["merge={method: average}"], "only coefficients of 'pcb' can be searched, not those of 'average'"),
        (["search.split=test"], "measured on 'test'; search on other data"),
        (["search.over=[lambdas]"], "'lambdas' is not one of"),
    ],
)
def test_what_is_wrong_is_one_sentence_on_the_terminal(overrides, sentence, monkeypatch, capsys):
    from flows import search_coefficients as module

    monkeypatch.chdir(ROOT)
    arguments = [argument for override in overrides for argument in ("--set", override)]
    monkeypatch.setattr(sys, "argv", ["search_coefficients", *arguments])
    assert module.main() == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
