"""A plan that calibrates its result: a stage of its own, and the merge as it was stays among the outputs."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.flows.runs import computed, plan_for, published, run, stage_names

pytestmark = pytest.mark.flow
OTHER = "control_data: {dataset: fashion, where: {domain: half}}"
CALIBRATED = ("evaluation.compare=[calibration_controls]", f"calibrate={{last_layer: heads, columns: 4000, {OTHER}}}")
CONTROLS = ["control-average", "control-first", "control-random", "control-ridge", "control-data"]


@pytest.fixture(scope="module")
def calibrated(project):
    """The default plan with a calibration of its result."""
    output = project / "calibrated"
    return run(plan_for(output, *CALIBRATED)), output


def test_the_calibrated_result_stands_beside_the_merge_as_it_was(calibrated):
    outcome, _ = calibrated
    rows = {row.name: row for row in outcome.comparison.rows}
    assert list(rows) == [*CONTROLS, "uncalibrated", "merged"]
    assert rows["merged"].label == f"{rows['uncalibrated'].label}, calibrated"
    assert rows["merged"].joint.value > rows["uncalibrated"].joint.value
    stages = stage_names(outcome)
    assert [stages.count(name) for name in ("calibrate", "draw-permutations", "evaluate-ridge")] == [5, 1, 1]


def test_controls_reach_what_they_can_and_are_told(calibrated):
    outcome, output = calibrated
    rows = {row.name: row for row in outcome.comparison.rows}
    assert 0.2 < rows["control-ridge"].joint.value < rows["merged"].joint.value
    for name in ("control-random", "control-data"):
        assert rows[name].joint.value > rows["uncalibrated"].joint.value
        assert rows[name].tasks != rows["merged"].tasks
    report = (output / "report.md").read_text()
    _, told = report.split("Controls show how much of that needs no good merge: ")
    ridge = f"ridge from raw inputs {rows['control-ridge'].mean} % over the tasks"
    assert told.index("random alignment, calibrated ") < told.index(ridge) < told.index("data of another domain")
    assert "calibrated on fashion/calibration half: " in told


def test_both_models_and_the_record_are_published(calibrated):
    _, output = calibrated
    before, after = (load_file(output / name) for name in ("uncalibrated/model.safetensors", "model.safetensors"))
    assert before.keys() == after.keys()
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])
    record = json.loads((output / "calibration.json").read_text())
    assert record["images"] == 600 and record["layers"][0]["name"] == "conv1" and len(record["shares"]) == 10
    report = (output / "report.md").read_text()
    assert "closed-form distillation" in report and "are the merge's own" in report and "Controls show" in report
    assert "closed-form distillation" in (output / "report.html").read_text()
    assert "calibrate" in json.loads((output / "lineage.json").read_text())["plan"]


def test_it_comes_from_the_cache_and_without_it_the_merge_alone_is_the_result(calibrated, project):
    outcome, output = calibrated
    before = published(output)
    again = run(plan_for(output, *CALIBRATED))
    assert computed(again) == 0 and published(output) == before
    plain = run(plan_for(output, "evaluation.compare=[]"))
    assert computed(plain) == 1 + 2 + 1  # evaluation under its own name, statistics of both domains, chart
    assert not {"calibration.json", "uncalibrated/model.safetensors"} & set(published(output))
    assert (output / "model.safetensors").read_bytes() == before["uncalibrated/model.safetensors"]
    uncalibrated, result = outcome.comparison.rows[-2], plain.comparison.result
    assert (result.tasks, result.joint) == (uncalibrated.tasks, uncalibrated.joint)


def test_a_comparison_shows_the_controls_of_a_calibrated_cell(calibrated, project):
    from flows.compare_methods import compare_methods
    from mergeline.grid import load_cells

    outcome, output = calibrated
    section = f"calibrate={{last_layer: heads, columns: 4000, {OTHER}}}"
    wanted = [f"output={output}", "compare={grid: {merge.scale: [1.0]}}", section]
    plan, cells = plan_for(output, *wanted[1:]), load_cells("params.yaml", wanted)
    rows = compare_methods(plan, cells).rows
    assert [row.repeats[0].scores.name for row in rows] == ["merged", "uncalibrated", *CONTROLS]
    known = {row.name: row.joint for row in outcome.comparison.rows}
    assert [row.scores.joint for row in rows] == [known[row.repeats[0].scores.name] for row in rows]


def test_data_that_chooses_measures_the_calibrated_model(calibrated):
    from flows.compare_methods import scores_on
    from tasks.runners import plan_flow

    outcome, output = calibrated
    found = plan_flow("choose")(scores_on)(plan_for(output, *CALIBRATED), "test")
    assert found.tasks == outcome.comparison.result.tasks
