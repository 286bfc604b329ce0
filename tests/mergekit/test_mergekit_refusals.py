"""What no plan can say, with its line."""

import textwrap

import pytest
import torch

from tests.mergekit.configurations import MODELS, imported, refusal


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "config.yml:1: is empty"),
        ("models: [1\n", "config.yml:2: not valid YAML"),
        (MODELS + "merge_method: linear\n---\n" + MODELS, "config.yml:5: a second merge begins here"),
        (MODELS + MODELS + "merge_method: linear\n", "config.yml:4: the key 'models' stands twice"),
        (MODELS, "merge_method is missing"),
        (
            MODELS + "merge_method: linaer\n",
            "config.yml:4: merge_method 'linaer' has no equivalent; did you mean 'linear'?",
        ),
        (MODELS + "merge_method: passthrough\n", "config.yml:4: merge_method 'passthrough' has no equivalent"),
        (MODELS + "merge_method: linear\nout_path: there\n", "config.yml:5: 'out_path' has no equivalent"),
        (MODELS + "merge_method: linear\ndtype: int8\n", "config.yml:5: dtype 'int8' is not one of"),
        (MODELS + "merge_method: linear\ntokenizer_source: union\n", "config.yml:5: tokenizer_source 'union' has no"),
        (
            MODELS + "merge_method: linear\ntokenizer:\n  source: base\n  tokens: {}\n",
            "config.yml:7: tokenizer.tokens has no",
        ),
        (MODELS + "merge_method: linear\nbase_model: ./base\n", "config.yml:5: base_model has no meaning for 'linear'"),
        (MODELS + "merge_method: ties\n", "config.yml:4: merge_method 'ties' needs base_model"),
        (MODELS + "merge_method: multislerp\nparameters: {weight: 1}\n", None),
        (
            MODELS + "  - {model: ./three, parameters: {weight: 1}}\nmerge_method: multislerp\n",
            "config.yml:2: multislerp gives the weighted mean of the directions",
        ),
        (
            MODELS + "merge_method: linear\nparameters: {normalize: false}\n",
            "config.yml:5: normalize: false with weights that sum to 2",
        ),
        (
            MODELS + "merge_method: ties\nbase_model: ./base\nparameters:\n  rescale: true\n  density: 0.5\n",
            "config.yml:7: rescale: true",
        ),
        (
            MODELS + "merge_method: della\nbase_model: ./base\nparameters:\n  density: 0.1\n",
            "config.yml:4: density 0.1 -+ epsilon 0.15 leaves (0, 1)",
        ),
        (
            MODELS + "merge_method: model_stock\nbase_model: ./base\nparameters:\n  filter_wise: true\n",
            "config.yml:7: filter_wise: true",
        ),
        (MODELS + "merge_method: slerp\nbase_model: ./one\n", "config.yml:4: the parameter t is missing"),
        (
            MODELS + "merge_method: slerp\nbase_model: ./one\nparameters:\n  t: 1.5\n",
            "config.yml:7: t 1.5 is outside 0 to 1",
        ),
        (
            MODELS + "merge_method: slerp\nbase_model: ./base\nparameters: {t: 0.5}\n",
            "merges 2 models by this method, not 3",
        ),
        (
            "models:\n  - model: ./one\n  - {model: ./two, parameters: {weight: 1}}\nmerge_method: linear\n",
            "config.yml:2: the weight of './one' is missing",
        ),
        (
            "models:\n  - model: ./one\n    parameters:\n      density: 0.5\n  - model: ./two\n    parameters:\n"
            "      density: 0.3\nmerge_method: ties\nbase_model: ./base\nparameters: {weight: 1}\n",
            "config.yml:7: density differs between the models (0.5 and 0.3)",
        ),
        (
            "models: [{model: ./one}, {model: ./two}]\n\n\nmerge_method: dare_ties\nbase_model: ./base\nparameters:\n"
            "  weight: 1\n  density:\n    - filter: mlp\n      value: 0\n    - value: 1\n",
            "config.yml:10: density 0 keeps nothing",
        ),
        (
            "models:\n  - model: ./one\n  - model: a/b+c/d\nmerge_method: karcher\n",
            "config.yml:3: 'a/b+c/d' puts an adapter",
        ),
        (
            "models:\n  - model: ./one\n  - model: gpt2\nmerge_method: karcher\n",
            "config.yml:3: 'gpt2' is neither a folder",
        ),
        (
            "models:\n  - model: ./one\n  - model: ./one\nmerge_method: karcher\n",
            "config.yml:3: './one' is listed twice",
        ),
        (
            "models:\n  - model: ./one\n    weight: 3\nmerge_method: karcher\n",
            "config.yml:3: 'weight' of a model has no",
        ),
        (
            "models:\n  - {model: a/b}\n  - {model: a/c}\nmerge_method: linear\nparameters:\n  weight: [0, 1]\n",
            "config.yml:6: a gradient over the layers needs their number",
        ),
        (
            "models:\n  - {model: ./one}\n  - {model: ./two}\nmerge_method: linear\nparameters:\n  weight:\n"
            "    - pattern: mlp\n      value: 1\n",
            "config.yml:7: 'pattern' is not a key of a condition",
        ),
        ("merge_method: linear\nmodules: {a: 1}\n", "config.yml:2: `modules` (models of several parts) has no"),
        (
            "models:\n  - model: ./one\n  - model: /abs/path+lora\nmerge_method: karcher\n",
            "config.yml:3: '/abs/path+lora' puts an adapter",
        ),
    ],
)
def test_what_has_no_equivalent_is_located(models, text, said):
    if said is None:
        imported(text)
    else:
        assert said in refusal(text)


SLICES = """\
    merge_method: linear
    parameters: {{weight: 1}}
    slices:
      - sources:
          - {{model: ./one, layer_range: {0}}}
          - {{model: ./two, layer_range: {1}}}
      - sources:
          - {{model: {4}, layer_range: {2}}}
          - {{model: ./two, layer_range: {3}}}
"""


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        (("[0, 3]", "[0, 3]", "[2, 5]", "[2, 5]", "./one"), "config.yml:8: layer_range begins at 2, not at 3"),
        (("[1, 3]", "[1, 3]", "[3, 5]", "[3, 5]", "./one"), "config.yml:5: layer_range begins at 1, not at 0"),
        (("[0, 3]", "[1, 4]", "[3, 5]", "[3, 5]", "./one"), "config.yml:6: layer_range [1, 4] merges other layers"),
        (("[0, 3]", "[0, 3]", "[3, 4]", "[3, 4]", "./one"), "config.yml:8: layer_range ends at 4, the models have 5"),
        (("[0, 3]", "[0, 3]", "[3, 5]", "[3, 5]", "./three"), "config.yml:8: slices of other models"),
        (("[0]", "[0, 3]", "[3, 5]", "[3, 5]", "./one"), "config.yml:5: layer_range: must be [first"),
        (("[0, 3]", "[0, 3]", "[3, 5]", "[3, 5]", "./one"), None),
    ],
)
def test_layers_that_move_are_located(models, ranges, said):
    if said is None:
        assert imported(SLICES.format(*ranges)).plan["merge"] == {
            "method": "average",
            "weights": [1.0, 1.0],
            "vocabulary": "common",
        }
    else:
        assert said in refusal(SLICES.format(*ranges))


def test_every_fault_is_told_at_once(models):
    said = refusal(MODELS + "merge_method: ties\nout_path: x\ndtype: int4\ntokenizer_source: union\n")
    assert [line.split(":")[1] for line in said.splitlines()] == ["4", "5", "6", "7"]


def lines(said):
    return [line.split(":")[1] for line in said.splitlines()]


def test_faults_of_the_models_do_not_hide_the_others(models):
    text = "out_path: x\nmodels: [{model: gpt2}]\nmerge_method: linaer\ndtype: int4\ntokenizer_source: union\n"
    assert lines(refusal(text)) == ["1", "2", "3", "4", "5"]
    assert lines(refusal(MODELS + "merge_method: ties\nbase_model: gpt2\ndtype: int4\n")) == ["5", "6"]
    assert lines(refusal("merge_method: linear\nmodules: {a: 1}\n")) == ["2"]
    assert lines(refusal("dtype: int4\n")) == ["1", "1", "1"]  # no method, and no models


def test_faults_of_the_layers_do_not_hide_the_others(models):
    ranges = ("[0, 3]", "[0, 3]", "[3, 4]", "[3, 4]", "./one")
    assert lines(refusal(textwrap.dedent(SLICES.format(*ranges)) + "dtype: int4\n")) == ["8", "10"]


def test_a_filter_of_a_tied_name_is_refused_with_the_name_that_counts(models, tmp_path):
    for name in ("one", "two"):
        state = models[name] | {"lm_head.weight": models[name]["model.embed_tokens.weight"]}
        torch.save(state, tmp_path / name / "pytorch_model.bin")
        (tmp_path / name / "model.safetensors").unlink()
    text = """
        models:
          - {model: ./one, parameters: {weight: [{filter: embed, value: 0.3}, {value: 0.5}]}}
          - {model: ./two, parameters: {weight: 0.5}}
        merge_method: linear
    """
    assert "'embed' fits 'model.embed_tokens.weight' only, which is tied to 'lm_head.weight'" in refusal(text)
    assert imported(text.replace("embed", "lm_head"))
