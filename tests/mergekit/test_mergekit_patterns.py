"""Filters and gradients as patterns of names."""

from random import Random

import pytest
import torch

from mergeline.merging.patterns import check_patterns, options_for
from mergeline.merging.registry import get
from tests.mergekit.configurations import LAYERS, SLERP, along, imported, loaded, refusal, t_of


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


def llama_names(layers):
    """As transformers calls them, not as we suppose that it does."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 1}
    with torch.device("meta"):
        return sorted(LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **sizes)).state_dict())


def values_of(plan, names, option):
    """What the plan sets for each tensor; every pattern must match some."""
    method = get(plan.merge.method)
    check_patterns(method, plan.merge.options_by_pattern, names, {})
    by_pattern = plan.merge.options_by_pattern
    return {name: (plan.merge.options | options_for(name, method, by_pattern))[option] for name in names}


def first_that_fits(conditions, name, layers):
    value = next(value for text, value in conditions if text is None or text in name)
    return along(value, t_of(name, layers)) if isinstance(value, list) else value


def listed(conditions):
    """Conditions as a configuration writes them."""
    items = [
        f"{{value: {value}}}" if text is None else f"{{filter: {text}, value: {value}}}" for text, value in conditions
    ]
    return f"[{', '.join(items)}]"


def test_models_that_are_not_here_are_merged_as_the_slices_say(tmp_path):
    text = SLERP.format(one="org/one", two="org/two", base="org/one")
    conditions = [("self_attn", [0, 0.5, 0.3, 0.7, 1]), ("mlp", [1, 0.5, 0.7, 0.3, 0]), (None, 0.5)]
    names = llama_names(LAYERS)
    expected = {name: pytest.approx(first_that_fits(conditions, name, LAYERS)) for name in names}
    assert values_of(loaded(text, tmp_path), names, "t") == expected
    assert any("supposed that the models have 5 layers" in sentence for _, sentence in imported(text).notes)


@pytest.mark.parametrize(
    "conditions",
    [
        [("mlp", 1), ("up_proj", 5), (None, 2)],
        [("up_proj", 5), ("mlp", 1), (None, 2)],
        [("self_attn", 1), ("self_attn.q_proj", 5), (None, 2)],
        [("self_attn.q_proj", 5), ("self_attn", 1), (None, 2)],
        [("layers", 1), ("mlp", 5), (None, 2)],
        [("norm", 3), ("post_attention_layernorm", 4), ("lm_head", 1), (None, 2)],
        [("post_attention_layernorm", 4), ("norm", 3), ("embed_tokens", 1), (None, 2)],
        [("layers.1.", 3), ("q_proj", 4), ("layers.1", 5), (None, 2)],
        [("self_attn.q", 3), ("attn.q_proj", 4), (None, 2)],
    ],
)
def test_the_first_filter_that_fits_wins_for_models_that_are_not_here(tmp_path, conditions):
    plan = loaded(
        f"""\
        models:
          - {{model: org/one, parameters: {{weight: {listed(conditions)}}}}}
          - {{model: org/two, parameters: {{weight: 1}}}}
        merge_method: linear
        """,
        tmp_path,
    )
    names = llama_names(12)
    expected = {name: [first_that_fits(conditions, name, 12), 1] for name in names}
    assert values_of(plan, names, "weights") == expected


def test_any_filters_of_two_models_with_gradients_say_the_same_as_patterns(tmp_path):
    random, names = Random(0), llama_names(3)
    words = [
        "self_attn",
        "mlp",
        "norm",
        "proj",
        "q_proj",
        "up_proj",
        "layers.1.",
        "embed",
        "lm_head",
        "attn.q",
        "model",
    ]
    for _ in range(40):
        own = [[(word, random.choice([1, 2, [3, 5]])) for word in random.sample(words, 3)] + [(None, 7)] for _ in "ab"]
        plan = loaded(
            f"""\
            slices:
              - sources:
                  - {{model: org/one, layer_range: [0, 3], parameters: {{weight: {listed(own[0])}}}}}
                  - {{model: org/two, layer_range: [0, 3], parameters: {{weight: {listed(own[1])}}}}}
            merge_method: linear
            """,
            tmp_path,
        )
        expected = {name: [first_that_fits(conditions, name, 3) for conditions in own] for name in names}
        assert values_of(plan, names, "weights") == expected, own


def test_a_filter_that_no_llama_has_needs_a_model(models):
    text = """\
    models:
      - {model: %s, parameters: {weight: 1}}
      - model: org/two
        parameters:
          weight:
            - filter: block_sparse_moe
              value: 2
            - value: 1
    merge_method: linear
    """
    assert "config.yml:6: filter 'block_sparse_moe' is part of no name" in refusal(text % "org/one")
    assert imported(text % "./one").plan["merge"]["weights"] == [1, 1]
