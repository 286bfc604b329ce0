"""The main job on the shipped data and checkpoints, against a real Prefect server and a real MLflow store."""

import json
import os
from pathlib import Path

import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file

from flows.merge_and_evaluate import merge_and_evaluate
from mergeline.alignment.alignment import Alignment
from mergeline.errors import InputError
from mergeline.plan_file import load_plan
from tests.flows.conftest import ROOT
from tests.flows.runs import all_task_runs, computed, plan_for, published

STAGES = {
    *("download-checkpoint", "prove-symmetry", "represent-family", "collect-activations", "activation-similarity"),
    *("weight-similarity", "solve-permutations", "merge-statistics", "merge", "evaluate", "reset-normalization"),
    *("measure-normalization", "draw-chart", "map-similarity", "count-winners", "publish", "track"),
}

pytestmark = pytest.mark.flow


@pytest.fixture(scope="module")
def first(project):
    """The default plan, run once."""
    output = project / "published"
    return merge_and_evaluate(plan_for(output)), output


def task_runs(flow_run):
    """One task run of each stage, by the name of the stage."""
    runs = all_task_runs(flow_run)
    return {run.name.rpartition("-")[0] if run.name.rpartition("-")[2].isalnum() else run.name: run for run in runs}


def test_the_result_is_what_the_scenario_promises(first):
    outcome, _ = first
    rows = {row.name: row for row in outcome.comparison.rows}
    merged, average = rows["merged"], rows["average"]
    singles = [rows[task.checkpoint].mean.value for task in load_plan("params.yaml").tasks]
    assert merged.mean.value > max(singles)
    assert merged.mean.value > average.mean.value + 0.2
    assert merged.joint.value > average.joint.value + 0.1
    assert rows["ensemble"].mean.value > max(singles)
    assert rows["unaligned-first"].mean.value > rows["unaligned-mean"].mean.value + 0.1  # it is mostly that base
    for name in ("a-clean-02478", "a-clean-13569", "b-half-12679", "b-half-03458"):
        assert rows[name].tasks[name[2:]].value > 0.85, name
    assert all(score.count == 500 for score in merged.tasks.values())
    assert (merged.mean.count, merged.joint.count) == (2000, 2000)


def test_every_stage_appears_by_name(first):
    outcome, _ = first
    assert set(task_runs(outcome.recorded.flow_run)) == STAGES
    assert outcome.stages.cached == 1  # the two unaligned rows share their coefficients


def test_everything_is_published(first):
    outcome, output = first
    assert set(published(output)) == {
        *("model.safetensors", "normalization/clean.safetensors", "normalization/half.safetensors"),
        *("alignment/alignment.json", "alignment/permutations.safetensors", "alignment/symmetry.yaml"),
        *("coefficients/coefficients.json", "comparison.json", "metrics.json", "report.md", "chart.png"),
        *("report.html", "README.md", "config.json", "exports/exports.json"),
    }
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["mean"] == outcome.comparison.result.mean.value
    assert metrics["tasks"].keys() == outcome.comparison.result.tasks.keys()
    lineage = json.loads((output / "lineage.json").read_text())
    assert lineage["plan"]["merge"]["keep_ratio"] == 0.3
    manifest = json.loads((ROOT / "data/zoo/manifest.json").read_text())["models"]
    pinned = {spec.name: spec.sha256 for spec in load_plan("params.yaml").checkpoints}
    assert lineage["checkpoints"] == pinned
    assert pinned.items() <= {model["name"]: model["sha256"] for model in manifest}.items()
    assert Alignment.load(output / "alignment").value == pytest.approx(
        max(Alignment.load(output / "alignment").history)
    )
    report = (output / "report.md").read_text()
    assert str(outcome.comparison.result.mean) in report
    assert (output / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_the_published_model_scores_what_the_table_says(first):
    """Loaded the way a user would: the model, then the statistics of the domain over it."""
    from mergeline.evaluation.datasets import load_images
    from mergeline.evaluation.metrics import accuracy, predict_logits
    from mergeline.evaluation.prototypes import load_prototypes, prototype_logits
    from mergeline.models.build import build_model

    outcome, output = first
    plan = plan_for(output)
    module = build_model(plan.architecture.factory, plan.architecture.kwargs)
    prototypes = load_prototypes("data/datasets/fashion_mnist/prototypes.safetensors").rows
    for task in plan.tasks:
        module.load_state_dict(load_file(output / "model.safetensors"))
        module.load_state_dict(load_file(output / "normalization" / f"{task.domain}.safetensors"), strict=False)
        examples = load_images("data/datasets/fashion_mnist", "test", where=task.where)
        logits = prototype_logits(predict_logits(module, examples.inputs), prototypes)
        assert accuracy(logits, examples.labels, task.classes) == outcome.comparison.result.tasks[task.name]


def test_the_published_model_carries_the_statistics_of_all_calibration_pictures(first):
    from mergeline.calibration.normalization import reset_normalization
    from mergeline.evaluation.datasets import load_images
    from mergeline.models.build import build_model

    _, output = first
    plan = plan_for(output)
    module = build_model(plan.architecture.factory, plan.architecture.kwargs)
    published_state = load_file(output / "model.safetensors")
    module.load_state_dict(published_state)
    pictures = load_images("data/datasets/fashion_mnist", "calibration").inputs
    again = reset_normalization(module, pictures.split(plan.calibration.batch_size)).state_dict()
    for name, tensor in published_state.items():
        assert again[name].allclose(tensor, rtol=1e-4, atol=1e-5), name


def test_the_run_is_recorded(first):
    outcome, output = first
    client = MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    run = client.get_run(outcome.recorded.mlflow_run)
    assert run.data.params["merge.keep_ratio"] == "0.3"
    assert run.data.metrics["merged/mean"] == outcome.comparison.result.mean.value
    assert run.data.metrics["merged/task/half-12679"] == outcome.comparison.result.tasks["half-12679"].value
    assert {f"seconds/{stage}" for stage in STAGES - {"publish", "track"}} <= run.data.metrics.keys()
    assert all(value > 0 for name, value in run.data.metrics.items() if name.startswith("seconds/"))
    history = [point.value for point in client.get_metric_history(run.info.run_id, "objective")]
    assert history == list(Alignment.load(output / "alignment").history)
    assert (
        run.data.tags["checkpoint.base-a"] == json.loads((output / "lineage.json").read_text())["checkpoints"]["base-a"]
    )
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} >= {"data/datasets/fashion_mnist/test"}
    page = Path(client.download_artifacts(run.info.run_id, "report.html")).read_text()
    assert "<h2>This run</h2>" in page and outcome.recorded.flow_run in page and "solve-permutations" in page
    assert "<h2>This run</h2>" not in (output / "report.html").read_text()  # its bytes are versioned
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {
        "model.safetensors",
        "report.md",
        "report.html",
        "chart.png",
        "lineage.json",
        "metrics.json",
        "alignment",
    } <= names
    assert run.info.status == "FINISHED"


def test_again_everything_comes_from_the_cache_with_the_same_bytes(first):
    outcome, output = first
    before = published(output)
    again = merge_and_evaluate(plan_for(output))
    assert again.stages.total == again.stages.cached == outcome.stages.total
    assert "all 49 stages came from the cache" in str(again.stages)
    assert again.comparison == outcome.comparison
    assert published(output) == before


def test_an_option_reruns_what_reads_it_and_nothing_else(first, project):
    outcome, _ = first
    other = merge_and_evaluate(plan_for(project / "other", "merge.keep_ratio=0.2"))
    # anew: coefficients of four rows (two unaligned rows share theirs), five merges and evaluations, three
    # normalisations of the published model, the chart and the winners
    assert other.stages.total - other.stages.cached == 4 + 5 + 5 + 3 + 1 + 1
    assert other.comparison.result != outcome.comparison.result
    rows = zip(other.comparison.rows, outcome.comparison.rows, strict=True)
    changed = [row.name for row, before in rows if row != before]
    assert changed == ["unaligned-mean", "unaligned-first", "team-base-a", "team-base-b", "merged"]


def test_a_run_from_nothing_gives_the_same_bytes(first, tmp_path, monkeypatch):
    _, output = first
    monkeypatch.setenv("MERGELINE_STATE", str(tmp_path))
    merge_and_evaluate(plan_for(tmp_path / "published", "tracking.enabled=false"))
    assert published(tmp_path / "published") == published(output)


def test_tasks_on_the_same_domain_of_different_files_keep_apart(first, project, tmp_path):
    """Another split, and a copy of the data with its rows in another order."""
    import datasets as library

    outcome, _ = first
    folder = tmp_path / "other"
    folder.mkdir()
    for split in ("test", "calibration"):
        table = library.Dataset.from_parquet(f"data/datasets/fashion_mnist/{split}.parquet", cache_dir=str(tmp_path))
        table.shuffle(seed=1).to_parquet(folder / f"{split}.parquet")
    other = load_plan("params.yaml").datasets["fashion"].model_dump(mode="json") | {"path": str(folder)}
    overrides = [f"datasets.model={json.dumps(other)}", "tasks[0].dataset=model", "tasks[2].split=validation"]
    again = merge_and_evaluate(plan_for(project / "apart", *overrides, "evaluation.compare=[]"))
    expected = outcome.comparison.result.tasks["clean-02478"].value
    assert again.comparison.result.tasks["clean-02478"].value > expected - 0.2  # other labels would give a fifth
    assert again.comparison.result.tasks["half-12679"].count == 200
    names = {path.stem for path in (project / "apart" / "normalization").iterdir()}
    assert len(names) == 4
    assert (project / "apart" / "model.safetensors").stat().st_size > 400_000


@pytest.fixture(scope="module")
def mudsc(project):
    return merge_and_evaluate(plan_for(project / "mudsc", path="params/mudsc.yaml"))


def test_the_setting_of_mudsc(mudsc, project):
    rows = {row.name: row for row in mudsc.comparison.rows}
    assert rows["merged"].mean.value > rows["average"].mean.value + 0.1
    assert rows["ensemble"].mean.value > 0.85
    assert json.loads((project / "mudsc" / "coefficients" / "coefficients.json").read_text()) == {}


def test_units_can_be_zipped_with_the_similarities_at_hand(mudsc, project):
    plan = plan_for(project / "zip", "align.method=zip", path="params/mudsc.yaml")
    outcome = merge_and_evaluate(plan)
    rows = {row.name: row for row in outcome.comparison.rows}
    assert rows["merged"].label == "zipped, averaged"
    assert rows["merged"].mean.value > rows["average"].mean.value + 0.1
    assert (project / "zip" / "alignment" / "zips.safetensors").is_file()
    # anew: the alignment, its merge and evaluation, two normalisations, the chart, the maps; no similarities
    assert computed(outcome) == 7


def test_the_balance_can_be_searched_on_other_data(mudsc, project):
    search = "align.balance_search={balances: [0.2, 0.5, 0.8], metric: mean}"
    outcome = merge_and_evaluate(plan_for(project / "search", search, path="params/mudsc.yaml"))
    record = json.loads((project / "search" / "alignment" / "balance_search.json").read_text())
    assert set(record["tried"]) == {"0.2", "0.5", "0.8"}
    assert record["tried"][str(record["balance"])] == max(record["tried"].values())
    # anew: two of the alignments, three merges and evaluations on other data, the choice, its merge and its maps; and
    # where it is another balance than 0.5, its evaluation on the test data, two normalisations and the chart
    assert computed(outcome) == 2 + 3 + 3 + 1 + 1 + 1 + (4 if record["balance"] != 0.5 else 0)
    assert "**Balance search** by mean accuracy on `calibration`" in (project / "search" / "report.md").read_text()
    again = merge_and_evaluate(
        plan_for(project / "one", f"align.balance={record['balance']}", path="params/mudsc.yaml")
    )
    assert again.comparison.result == outcome.comparison.result
    assert computed(again) <= 2  # the merge and the maps, whose alignment now lacks the record of the search


def test_models_of_one_base_are_merged_without_alignment(project):
    plan = load_plan("params.yaml")
    team = [c.model_dump() for c in plan.checkpoints if "base-a" in (c.name, c.base)]
    tasks = [task.model_dump() for task in plan.tasks[:2]]
    overrides = [f"checkpoints={json.dumps(team)}", f"tasks={json.dumps(tasks)}", "evaluation.compare=[]"]
    outcome = merge_and_evaluate(plan_for(project / "team", *overrides))
    assert "solve-permutations" not in task_runs(outcome.recorded.flow_run)
    assert outcome.comparison.result.mean.value > 0.8


def test_a_checkpoint_that_is_not_what_was_pinned_stops_the_run(first, project):
    wrong = plan_for(project / "wrong", f"checkpoints[0].sha256='{'0' * 64}'")
    with pytest.raises(InputError, match=r"base-a\.safetensors.*0000.*"):
        merge_and_evaluate(wrong)
    assert not (project / "wrong").exists()
