"""Methods and options of a plan, on the shipped checkpoints, through the whole flow."""

import json

import pytest

from tests.flows.runs import computed, plan_for, published, run, stage_names

pytestmark = pytest.mark.flow
RESULT_ONLY = "evaluation.compare=[]"


@pytest.fixture(scope="module")
def ties(project):
    """TIES, with a keep ratio of its own for the second layer."""
    by_pattern = "merge.options_by_pattern={'layer2*': {keep_ratio: 0.5}}"
    plan = plan_for(project / "ties", "merge={method: ties, keep_ratio: 0.2}", by_pattern, RESULT_ONLY)
    return run(plan), project / "ties"


def test_options_by_pattern_reach_the_statistics_and_the_merge(ties, project):
    outcome, output = ties
    coefficients = json.loads((output / "coefficients" / "coefficients.json").read_text())
    assert list(coefficients) == ["model", "model (keep_ratio=0.5)"]
    assert "options_by_pattern {'layer2*': {'keep_ratio': 0.5}}" in (output / "report.md").read_text()
    other = run(plan_for(project / "plain", "merge={method: ties, keep_ratio: 0.2}", RESULT_ONLY))
    assert other.comparison.result != outcome.comparison.result
    assert computed(other) == 1 + 1 + 1 + 3 + 1  # coefficients, merge, evaluation, normalisation, chart


def test_granularity_reaches_the_statistics(ties, project):
    run(plan_for(project / "layers", "merge={method: ties, granularity: layer}", RESULT_ONLY))
    coefficients = json.loads((project / "layers" / "coefficients" / "coefficients.json").read_text())
    assert {"conv1", "layer1.0", "layer3.0", "linear"} <= coefficients.keys()


@pytest.mark.parametrize(("method", "stage"), [("fisher", "collect-fisher"), ("regmean", "collect-grams")])
def test_what_a_method_must_know_of_each_model_is_a_stage_of_its_own(ties, project, method, stage):
    plan = plan_for(project / method, f"merge={{method: {method}}}", "evaluation.compare=[average]")
    outcome = run(plan)
    assert stage_names(outcome).count(stage) == 4
    rows = {row.name: row for row in outcome.comparison.rows}
    assert rows["merged"].mean.value > rows["average"].mean.value + 0.1
    before = published(project / method)
    again = run(plan)
    assert computed(again) == 0
    assert published(project / method) == before


def test_regmean_plusplus_measures_all_models_in_one_stage(ties, project):
    plan = plan_for(project / "plusplus", "merge={method: regmean_plusplus}", "evaluation.compare=[average]")
    outcome = run(plan)
    assert stage_names(outcome).count("collect-merged-grams") == 1
    rows = {row.name: row for row in outcome.comparison.rows}
    assert rows["merged"].mean.value > rows["average"].mean.value + 0.1
    assert computed(run(plan)) == 0


@pytest.mark.parametrize("merge", ["wudi, learning_rate: 0.001", "wudi_closed", "tsv", "iso_c, scale: 4"])
def test_methods_of_whole_matrices_run_through_the_flow(ties, project, merge):
    outcome = run(plan_for(project / "matrices", f"merge={{method: {merge}}}", RESULT_ONLY))
    assert outcome.comparison.result.mean.value > 0.4  # five classes


def test_other_data_for_the_evidence_measure_the_models_again(ties, project):
    plan = [f"merge={{method: fisher, evidence: {{split: validation, batches: {n}}}}}" for n in (1, 2)]
    one, two = (run(plan_for(project / "evidence", override, RESULT_ONLY)) for override in plan)
    assert computed(two) == 4 + 1 + 1 + 3 + 1  # measurements, merge, evaluation, normalisation, chart
    assert one.comparison.result != two.comparison.result


def test_the_dtype_of_the_result_is_that_of_the_plan(ties, project):
    import torch
    from safetensors.torch import load_file

    run(plan_for(project / "half", "merge={method: ties, out_dtype: bfloat16}", RESULT_ONLY))
    tensors = load_file(project / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16, torch.int64}
