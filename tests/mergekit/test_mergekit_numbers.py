"""What mergekit computes for one tensor, written from its documentation: a few lines each. The plans give the same."""

import pytest
import torch

from tests.mergekit.configurations import LAYERS, SLERP, along, check, loaded, merged, t_of


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
