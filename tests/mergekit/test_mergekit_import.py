"""Configurations of mergekit as plans: what they become."""

import pytest
import yaml

import mergeline as ml
from tests.mergekit.configurations import MODELS, SHAPES, imported, loaded, merged

LINEAR = """\
    models:
      - model: psmathur/orca_mini_v3_13b
        parameters:
          weight: 1.0
      - model: WizardLM/WizardLM-13B-V1.2@v2
        parameters:
          weight: 0.3
      - model: garage-bAInd/Platypus2-13B
        parameters:
          weight: 0.5
    merge_method: linear
    dtype: float16
"""


def test_linear_is_the_weighted_average(tmp_path):
    plan = loaded(LINEAR, tmp_path)
    assert [(spec.name, spec.uri, spec.base) for spec in plan.checkpoints] == [
        ("orca_mini_v3_13b", "hf://psmathur/orca_mini_v3_13b", None),
        ("WizardLM-13B-V1.2", "hf://WizardLM/WizardLM-13B-V1.2@v2", None),
        ("Platypus2-13B", "hf://garage-bAInd/Platypus2-13B", None),
    ]
    assert (plan.merge.method, plan.merge.options) == ("average", {"weights": [1.0, 0.3, 0.5]})
    assert (plan.merge.out_dtype, plan.merge.vocabulary, plan.align) == ("float16", "common", None)


def test_notes_stand_in_the_plan_with_their_lines(tmp_path):
    text = imported(LINEAR).to_yaml()
    assert "# config.yml:12: computed in float32 and rounded once; mergekit computes in float16" in text


def test_ties_as_its_readme_shows_it(tmp_path):
    plan = loaded(
        """\
        models:
          - model: mistralai/Mistral-7B-v0.1
          - model: OpenPipe/mistral-ft-optimized-1218
            parameters: {density: 0.5, weight: 0.5}
          - model: mlabonne/NeuralHermes-2.5-Mistral-7B
            parameters: {density: 0.5, weight: 0.3}
        merge_method: ties
        base_model: mistralai/Mistral-7B-v0.1
        parameters:
          normalize: true
          int8_mask: true
        dtype: float16
        """,
        tmp_path,
    )
    assert [base.name for base in plan.bases] == ["Mistral-7B-v0.1"]
    assert [model.base for model in plan.task_models] == ["Mistral-7B-v0.1"] * 2
    assert plan.merge.granularity == "tensor"
    assert plan.merge.options == {"keep_ratio": 0.5, "scale": 1.0, "weights": [0.5, 0.3], "combine": "mean"}


@pytest.mark.parametrize(
    ("method", "given", "options"),
    [
        ("task_arithmetic", "", {"scale": 1.0, "weights": [2.0, 0.5]}),
        ("task_arithmetic", "normalize: true, lambda: 3", {"scale": 3.0, "weights": [0.8, 0.2]}),
        ("ties", "normalize: false", {"keep_ratio": 0.5, "scale": 1.0, "weights": [2.0, 0.5], "combine": "sum"}),
        ("dare_linear", "", {"keep_ratio": 0.5, "scale": 1.0, "weights": [2.0, 0.5]}),
        ("dare_linear", "rescale: false", {"keep_ratio": 0.5, "scale": 0.5, "weights": [2.0, 0.5]}),
        ("dare_ties", "lambda: 2", {"keep_ratio": 0.5, "scale": 2.0, "weights": [2.0, 0.5], "combine": "sum"}),
        ("breadcrumbs", "gamma: 0.02", {"keep_ratio": 0.5, "outlier_ratio": 0.02, "scale": 1.0, "weights": [2.0, 0.5]}),
        (
            "breadcrumbs_ties",
            "",
            {"keep_ratio": 0.5, "outlier_ratio": 0.01, "scale": 1.0, "weights": [2.0, 0.5], "combine": "sum"},
        ),
        ("della", "", {"keep_ratio": 0.5, "spread": 0.15, "scale": 1.0, "weights": [2.0, 0.5], "combine": "mean"}),
        ("della_linear", "epsilon: 0.1", {"keep_ratio": 0.5, "spread": 0.1, "scale": 1.0, "weights": [2.0, 0.5]}),
        ("model_stock", "", {}),
    ],
)
def test_each_method_gets_the_options_that_mean_the_same(models, tmp_path, method, given, options):
    plan = loaded(
        f"""\
        models:
          - model: ./one
            parameters: {{weight: 2, density: 0.5}}
          - model: ./two
            parameters: {{weight: 0.5, density: 0.5}}
        merge_method: {method}
        base_model: ./base
        parameters: {{{given}}}
        """,
        tmp_path,
    )
    assert (plan.merge.method, plan.merge.options) == (method, options)
    assert merged(plan).keys() == SHAPES.keys()


@pytest.mark.parametrize(
    ("method", "given", "rescaled", "random"),
    [
        *((method, "density: 0.5", True, True) for method in ("dare_linear", "dare_ties", "della", "della_linear")),
        *((method, "density: 0.5, rescale: false", False, True) for method in ("dare_linear", "dare_ties")),
        *((method, "density: 1, rescale: true", False, False) for method in ("dare_linear", "dare_ties", "della")),
    ],
)
def test_what_differs_is_noted_where_it_does(models, method, given, rescaled, random):
    notes = imported(MODELS + f"merge_method: {method}\nbase_model: ./base\nparameters: {{{given}}}\n").notes
    assert any("divided by their chance" in sentence for _, sentence in notes) is rescaled
    assert any("draws other numbers" in sentence for _, sentence in notes) is random


def test_karcher_is_the_mean_on_the_sphere(models, tmp_path):
    plan = loaded("models: [{model: ./one}, {model: ./two}]\nmerge_method: karcher\n", tmp_path)
    assert plan.merge.method == "multi_slerp"


def test_the_command_writes_a_plan_or_says_why_not(models, tmp_path, capsys, monkeypatch):
    from flows.import_mergekit import main

    (tmp_path / "my merge.yml").write_text(MODELS + "merge_method: linear\n")
    monkeypatch.setattr("sys.argv", ["import", "my merge.yml", "-o", "params.yaml"])
    assert main() == 0
    plan = ml.load_plan("params.yaml")
    assert (plan.name, str(plan.output)) == ("my-merge", "data/merged_my-merge")
    monkeypatch.setattr("sys.argv", ["import", "my merge.yml"])
    capsys.readouterr()
    assert main() == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load((tmp_path / "params.yaml").read_text())
    monkeypatch.setattr("sys.argv", ["import", "absent.yml"])
    assert main() == 2
    assert "absent.yml: cannot be read" in capsys.readouterr().err
