"""Configurations of mergekit, and what they become: plans, refusals, merged tensors."""

import textwrap

import pytest
import torch

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

MODELS = "models:\n  - {model: ./one, parameters: {weight: 1}}\n  - {model: ./two, parameters: {weight: 1}}\n"


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
