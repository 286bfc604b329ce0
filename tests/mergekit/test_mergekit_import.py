"""Configurations of mergekit as plans: what they become, and which lines have no equivalent."""

import json
import textwrap

import pytest
import torch
import yaml
from safetensors.torch import save_file

import mergeline as ml
from mergeline.errors import InputError
from mergeline.mergekit.convert import import_configuration

LAYERS = 5
SHAPES = {
    "model.embed_tokens.weight": (7, 4),
    **{f"model.layers.{i}.self_attn.q_proj.weight": (4, 4) for i in range(LAYERS)},
    **{f"model.layers.{i}.mlp.up_proj.weight": (8, 4) for i in range(LAYERS)},
    **{f"model.layers.{i}.input_layernorm.weight": (4,) for i in range(LAYERS)},
    "model.norm.weight": (4,),
    "lm_head.weight": (7, 4),
}


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Folders base, one, two, three beside the working directory, as Hugging Face writes them."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    found = {}
    for name in ("base", "one", "two", "three"):
        (tmp_path / name).mkdir()
        change = 0.0 if name == "base" else 0.3
        found[name] = {
            key: value + change * torch.randn(value.shape, generator=generator) for key, value in base.items()
        }
        save_file(found[name], tmp_path / name / "model.safetensors")
        config = {"model_type": "llama", "num_hidden_layers": LAYERS, "tie_word_embeddings": False}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    return found


def imported(text):
    return import_configuration(textwrap.dedent(text), "config.yml", name="trial")


def loaded(text, folder):
    """The plan, through its file."""
    (folder / "params.yaml").write_text(imported(text).to_yaml())
    return ml.load_plan(folder / "params.yaml")


def refusal(text):
    with pytest.raises(InputError) as fault:
        imported(text)
    return str(fault.value)


def merged(plan):
    """What the plan merges, by its own options."""
    paths = {spec.name: spec.uri for spec in plan.checkpoints}
    bases = [paths[model.base] for model in plan.task_models if model.base]
    return dict(
        ml.merge(
            [paths[model.name] for model in plan.task_models],
            base=bases or None,
            method=plan.merge.method,
            granularity=plan.merge.granularity,
            options_by_pattern=plan.merge.options_by_pattern,
            **plan.merge.options,
        )
    )


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


SLERP = """\
    slices:
      - sources:
          - model: {one}
            layer_range: [0, 5]
          - model: {two}
            layer_range: [0, 5]
    merge_method: slerp
    base_model: {base}
    parameters:
      t:
        - filter: self_attn
          value: [0, 0.5, 0.3, 0.7, 1]
        - filter: mlp
          value: [1, 0.5, 0.7, 0.3, 0]
        - value: 0.5 # fallback for rest of tensors
    dtype: float32
"""


@pytest.mark.parametrize("base", ["one", "two"])
def test_gradients_and_filters_become_patterns(models, tmp_path, base):
    plan = loaded(SLERP.format(one="./one", two="./two", base=f"./{base}"), tmp_path)
    assert [spec.name for spec in plan.checkpoints] == [base, "two" if base == "one" else "one"]
    assert plan.merge.options == {"t": 0.5}
    patterns = plan.merge.options_by_pattern
    assert patterns["*layers.2.*self_attn*"] == {"t": 0.3}
    assert patterns["*layers.0.*mlp*"] == {"t": 1.0}
    assert "*layers.1.*mlp*" not in patterns  # its 0.5 is that of all other tensors
    assert len(patterns) == 8
    assert not any("norm" in pattern for pattern in patterns)


def test_slices_tell_the_number_of_layers_where_no_model_is_here(tmp_path):
    found = imported(SLERP.format(one="org/one", two="org/two", base="org/one"))
    assert found.plan["merge"]["options_by_pattern"]["*layers.4.*mlp*"] == {"t": 0.0}
    assert any("supposed that the models have 5 layers" in sentence for _, sentence in found.notes)


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


def test_karcher_is_the_mean_on_the_sphere(models, tmp_path):
    plan = loaded("models: [{model: ./one}, {model: ./two}]\nmerge_method: karcher\n", tmp_path)
    assert plan.merge.method == "multi_slerp"


# What mergekit computes for one tensor, written from its documentation: a few lines each.


def t_of(name, count=LAYERS):
    if ".layers." in name:
        return int(name.split(".")[2]) / (count - 1)
    return 0.0 if "embed" in name else 1.0


def along(values, t):
    place = t * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def check(plan, models, formula):
    for name, tensor in merged(plan).items():
        expected = formula(name, {key: state[name].double() for key, state in models.items()})
        torch.testing.assert_close(
            tensor.double(), expected, rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_linear_gives_mergekits_numbers(models, tmp_path):
    plan = loaded(
        """\
        models:
          - model: ./one
            parameters:
              weight: [1, 0, 2]
          - model: ./two
            parameters:
              weight:
                - filter: mlp
                  value: 3
                - filter: lm_head
                  value: 0.5
                - value: [1, 2]
        merge_method: linear
        """,
        tmp_path,
    )

    def formula(name, state):
        a = along([1, 0, 2], t_of(name))
        b = 3 if "mlp" in name else 0.5 if "lm_head" in name else along([1, 2], t_of(name))
        return (a * state["one"] + b * state["two"]) / (a + b)

    check(plan, models, formula)


def test_task_arithmetic_gives_mergekits_numbers(models, tmp_path):
    plan = loaded(
        """\
        models:
          - model: ./one
            parameters: {weight: 0.7}
          - model: ./two
            parameters: {weight: -0.2}
          - model: ./base
        merge_method: task_arithmetic
        base_model: ./base
        parameters:
          lambda:
            - filter: self_attn
              value: 0.5
            - value: 1.5
        """,
        tmp_path,
    )

    def formula(name, state):
        scale = 0.5 if "self_attn" in name else 1.5
        base = state["base"]
        return base + scale * (0.7 * (state["one"] - base) - 0.2 * (state["two"] - base))

    check(plan, models, formula)


@pytest.mark.parametrize("normalize", [True, False])
def test_ties_gives_mergekits_numbers(models, tmp_path, normalize):
    plan = loaded(
        f"""\
        models:
          - model: ./one
            parameters:
              weight: 1
          - model: ./two
            parameters:
              weight:
                - filter: mlp
                  value: 0.5
                - value: 0
          - model: ./three
            parameters:
              weight: 0.3
        merge_method: ties
        base_model: ./base
        parameters:
          normalize: {str(normalize).lower()}
          density: 1
        """,
        tmp_path,
    )

    def formula(name, state):
        base = state["base"]
        weights = torch.tensor([1, 0.5 if "mlp" in name else 0, 0.3]).double()
        weights = weights.view(-1, *[1] * base.dim())
        weighted = weights * torch.stack([state[key] - base for key in ("one", "two", "three")])
        majority = torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
        agree = (weighted.sign() == majority).double()
        share = (weights * agree).sum(0)
        share[share == 0] = 1
        return base + (weighted * agree).sum(0) / (share if normalize else 1)

    check(plan, models, formula)


def test_the_trim_of_ties_differs_by_one_entry_of_a_tensor_at_most(models, tmp_path):
    plan = loaded(
        """\
        models:
          - {model: ./one, parameters: {weight: 1}}
          - {model: ./two, parameters: {weight: 0}}
        merge_method: ties
        base_model: ./base
        parameters: {density: 0.4}
        """,
        tmp_path,
    )
    for name, tensor in merged(plan).items():
        change = (models["one"][name] - models["base"][name]).abs().flatten()
        kept = int(((tensor - models["base"][name]).abs() > 1e-6).sum())
        assert kept in (int(0.4 * len(change)), int(0.4 * len(change)) + 1), name


def test_slerp_gives_mergekits_numbers(models, tmp_path):
    plan = loaded(SLERP.format(one="./one", two="./two", base="./two"), tmp_path)

    def formula(name, state):
        values = {"self_attn": [0, 0.5, 0.3, 0.7, 1], "mlp": [1, 0.5, 0.7, 0.3, 0]}
        t = next((along(gradient, t_of(name)) for word, gradient in values.items() if word in name), 0.5)
        a, b = state["two"], state["one"]
        cosine = (a / a.norm() * (b / b.norm())).sum()
        if cosine.abs() > 0.9995:
            return (1 - t) * a + t * b
        angle = torch.arccos(cosine)
        return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)

    check(plan, models, formula)


@pytest.mark.parametrize("method", ["dare_linear", "della_linear", "breadcrumbs"])
def test_methods_that_drop_nothing_are_task_arithmetic(models, tmp_path, method):
    plan = loaded(
        f"""\
        models:
          - {{model: ./one, parameters: {{weight: 0.7}}}}
          - {{model: ./two, parameters: {{weight: 0.6}}}}
        merge_method: {method}
        base_model: ./base
        parameters: {{lambda: 0.5, normalize: true}}
        """,
        tmp_path,
    )

    def formula(name, state):
        base = state["base"]
        return base + 0.5 * (0.7 * (state["one"] - base) + 0.6 * (state["two"] - base)) / 1.3

    check(plan, models, formula)


def test_breadcrumbs_gives_mergekits_numbers(models, tmp_path):
    plan = loaded(
        """\
        models:
          - {model: ./one, parameters: {weight: 1}}
          - {model: ./two, parameters: {weight: 0.5}}
        merge_method: breadcrumbs
        base_model: ./base
        parameters:
          density: [{filter: mlp, value: 0.25}, {value: 0.5}]
          gamma: 0.25
        """,
        tmp_path,
    )

    def formula(name, state):
        base = state["base"]
        total = torch.zeros_like(base)
        for key, weight in (("one", 1), ("two", 0.5)):
            delta = (state[key] - base).flatten()
            count = len(delta)
            top = int(0.25 * count)
            bottom = count - int((0.25 if "mlp" in name else 0.5) * count) - top
            kept = torch.zeros_like(delta)
            kept[delta.abs().sort().indices[bottom : count - top]] = 1
            total += weight * (kept * delta).view_as(base)
        return base + total

    check(plan, models, formula)


def test_model_stock_gives_mergekits_numbers(models, tmp_path):
    plan = loaded("models: [{model: ./one}, {model: ./two}]\nmerge_method: model_stock\nbase_model: ./base\n", tmp_path)

    def formula(name, state):
        base = state["base"]
        one, two = (state[key] - base for key in ("one", "two"))
        cosine = ((one * two).sum() / (one.norm() * two.norm())).clamp(min=0)  # mergekit would go beyond the base
        t = 2 * cosine / (1 + cosine)
        return base + t * (one + two) / 2

    check(plan, models, formula)


def test_slices_with_parameters_of_their_own_are_flattened(models, tmp_path):
    plan = loaded(
        """\
        slices:
          - sources:
              - {model: ./one, layer_range: [0, 2], parameters: {weight: 1}}
              - {model: ./two, layer_range: [0, 2], parameters: {weight: 3}}
          - sources:
              - {model: ./two, layer_range: [2, 5], parameters: {weight: [0, 1]}}
              - {model: ./one, layer_range: [2, 5]}
            parameters: {weight: 2}
        merge_method: linear
        """,
        tmp_path,
    )

    def formula(name, state):
        layer = int(name.split(".")[2]) if ".layers." in name else (0 if "embed" in name else LAYERS - 1)
        one, two = (1, 3) if layer < 2 else (2, (layer - 2) / 2)
        return (one * state["one"] + two * state["two"]) / (one + two)

    check(plan, models, formula)


def test_names_that_hold_two_filters_take_the_first_that_fits(models, tmp_path):
    plan = loaded(
        """\
        models:
          - model: ./one
            parameters:
              weight: [{filter: layers, value: 1}, {filter: mlp, value: 5}, {value: 2}]
          - model: ./two
            parameters:
              weight: [{filter: up_proj.weight, value: 7}, {filter: layers.1, value: 3}, {filter: '*', value: 4}]
        merge_method: linear
        """,
        tmp_path,
    )

    def formula(name, state):
        one = 1 if "layers" in name else 5 if "mlp" in name else 2
        two = 7 if "up_proj.weight" in name else 3 if "layers.1" in name else 4
        return (one * state["one"] + two * state["two"]) / (one + two)

    check(plan, models, formula)


MODELS = "models:\n  - {model: ./one, parameters: {weight: 1}}\n  - {model: ./two, parameters: {weight: 1}}\n"


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
        ("merge_method: linear\nmodules: {a: 1}\nmodels: [{model: a/b}]\n", "config.yml:2: `modules`"),
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
