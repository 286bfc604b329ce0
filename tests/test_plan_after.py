"""Plans with a calibration of the merged model: what it needs, its rows of the table, and its controls."""

import re

import pytest

from mergeline.comparison import RESULT, comparison_rows, is_merged
from mergeline.plan_file import load_plan
from tests.plans import faults_of, in_the_project  # noqa: F401


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        (
            "calibrate={centre: false, layers: false, last_layer: none}",
            "calibrate: centre, last_layer and layers are all off.* write calibrate: null",
        ),
        ("calibrate={last_layer: head}", "calibrate.last_layer: 'head' is not one of .*; did you mean 'heads'"),
        ("calibrate={ridge: 0}", "calibrate.ridge: .*greater than 0"),
        ("calibrate={columns: 0}", "calibrate.columns: .*greater than or equal to 1"),
        ("calibrate={center: true}", "calibrate.center: unknown key; did you mean 'centre'"),
        (
            "calibrate={control_data: {dataset: fashoin}}",
            "calibrate.control_data.dataset: no dataset is called 'fashoin'.*'fashion'",
        ),
        (
            "calibrate={control_data: {dataset: fashion, split: tset}}",
            "calibrate.control_data.split: 'tset' is not a split of .*; did you mean 'test'",
        ),
        (
            "calibrate={control_data: {dataset: fashion, where: {domain: halv}}}",
            "calibrate.control_data.where.domain: no row of .* has 'halv'; did you mean 'half'",
        ),
        (
            "calibrate={control_data: {dataset: fashion}}",
            "calibrate.control_data: is the calibration data itself; name data of another domain",
        ),
        ("checkpoints[0].name=control-ridge", r"checkpoints\[0\].name: 'control-ridge' is the name of a row"),
        ("checkpoints[0].name=uncalibrated", r"checkpoints\[0\].name: 'uncalibrated' is the name of a row"),
    ],
)
def test_a_fault_is_named_with_its_field(override, fault):
    faults = faults_of(override)
    assert any(re.search(f"params.yaml: {fault}", sentence) for sentence in faults), faults


def test_control_data_is_what_the_models_can_read():
    texts = "datasets.texts={path: data/datasets/fashion_mnist, text_column: domain, tokenizer: README.md}"
    faults = faults_of(texts, "calibrate={control_data: {dataset: texts}}")
    assert any("one of 'texts' and 'fashion', which calibrates, has texts and the other pictures" in f for f in faults)


def test_control_data_without_its_row_is_a_fault():
    other = "calibrate={control_data: {dataset: fashion, where: {domain: half}}}"
    (fault,) = faults_of(other, "evaluation.compare=[ensemble]")
    assert fault.endswith(
        "calibrate.control_data: needs calibration_controls in evaluation.compare; add it, or leave it out"
    )


def test_what_a_calibration_lacks_is_named():
    faults = faults_of("calibrate={last_layer: heads}", "tasks[0].checkpoint=a-clean-13569", "architecture=null")
    assert any("calibrate.last_layer: 'heads' needs the classes of every task model" in fault for fault in faults)
    assert any(fault.startswith("params.yaml: architecture: is missing; `calibrate` runs") for fault in faults)


def test_a_calibrated_plan_has_a_row_of_the_merge_before_it():
    *_, average, first, random, ridge, before, result = comparison_rows(load_plan("params.yaml", ["calibrate={}"]))
    names = ("control-average", "control-first", "control-random", "control-ridge")
    assert (average.name, first.name, random.name, ridge.name) == names
    assert (random.merge, random.aligned, is_merged(random)) == (result.merge, True, True)
    assert (ridge.kind, is_merged(ridge)) == ("ridge", False)
    assert (len(average.members), first.members) == (4, ("a-clean-02478",))
    assert (before.name, result.name) == ("uncalibrated", RESULT)
    assert result.label == f"{before.label}, calibrated"


def test_controls_that_a_plan_cannot_have_are_left_out():
    def controls(*overrides):
        plan = load_plan("params.yaml", ["calibrate={}", *overrides])
        return [row.name.removeprefix("control-") for row in comparison_rows(plan) if row.name.startswith("control-")]

    assert controls("align=null") == ["average", "first", "ridge"]
    other = "calibrate.control_data={dataset: fashion, where: {domain: half}}"
    assert controls(other) == ["average", "first", "random", "ridge", "data"]
    assert controls("evaluation.compare=[]") == []
    heads = [f"tasks[{place}].kind=head" for place in range(4)]
    assert "ridge" in controls(*heads)
    assert "ridge" not in controls(*heads, "tasks[0].head=fc")
    [data] = [row for row in comparison_rows(load_plan("params.yaml", [other])) if row.name == "control-data"]
    assert data.label == "control: aligned, PCB, calibrated on fashion/calibration half" and not is_merged(data)
