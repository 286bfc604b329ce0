"""Points of a search and the plans that they stand for."""

from pathlib import Path

import pytest
import yaml

from mergeline.errors import InputError
from mergeline.plan import Search
from mergeline.plan_file import PlanError, load_plan
from mergeline.search.space import Choice, Real, overlay, own_point, plan_at, search_space, settings

ROOT = Path(__file__).resolve().parent.parent.parent
MODELS = ["a-clean-02478", "a-clean-13569", "b-half-12679", "b-half-03458"]


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def plan_with(*overrides):
    return load_plan("params.yaml", overrides, searched=True)


def test_the_ranges_of_the_papers_are_the_defaults():
    plan = plan_with("search.over=[scales, keep_ratio, balance]")
    space = search_space(plan, plan.search)
    assert space.pop("keep_ratio") == Choice((0.05, 0.1, 0.2))
    assert space.pop("balance") == Choice(tuple(tenth / 10 for tenth in range(1, 10)))
    assert space == {f"scale.{name}": Real(0.8, 1.3, 0.1) for name in MODELS}
    assert plan.search.trials == 100
    assert plan.search.method == "cma"
    plan = plan_with("search.over=[scale]")
    assert search_space(plan, plan.search) == {"scale": Real(0.8, 2.2, 0.1)}


def test_a_plan_without_the_section_has_nothing_of_it():
    assert load_plan("params.yaml").search is None
    assert plan_with().search == Search()


@pytest.mark.parametrize(
    ("override", "name", "expected"),
    [
        ("search.scales.high=1.5", "scales", (0.8, 1.5, 0.1)),
        ("search.scales.low=0.5", "scales", (0.5, 1.3, 0.1)),
        ("search.scale.step=0.2", "scale", (0.8, 2.2, 0.2)),
    ],
)
def test_what_is_not_named_of_a_range_stays_as_it_is(override, name, expected):
    span = getattr(plan_with(override).search, name)
    assert (span.low, span.high, span.step) == expected


def test_a_range_whose_one_end_passes_the_other_is_refused():
    with pytest.raises(PlanError, match=r"search\.scales: low 1\.4 must be less than high 1\.3"):
        plan_with("search.scales.low=1.4")


def test_a_grid_reaches_both_ends_without_noise():
    assert Real(0.8, 1.3, 0.1).grid() == [0.8, 0.9, 1.0, 1.1, 1.2, 1.3]
    assert Real(0.8, 1.3, 0.2).grid() == [0.8, 1.0, 1.2]


def test_a_search_begins_at_the_nearest_to_the_plan():
    plan = plan_with(
        "search.over=[scales, keep_ratio, balance]", "merge.scales=[1.0, 0.5, 2.0, 1.25]", "align.balance=0.52"
    )
    point = own_point(plan, search_space(plan, plan.search))
    assert list(point.values()) == [1.0, 0.8, 1.3, 1.25, 0.2, 0.5]


def test_what_is_not_searched_stays_as_in_the_plan():
    plan = plan_with("search.over=[scale]", "merge.scales=[1, 1, 1, 0.5]")
    there = plan_at(plan, {"scale": 1.7})
    assert there.merge.options == plan.merge.options | {"scale": 1.7}
    assert there.align == plan.align
    assert plan_at(plan, {}) == plan


def test_a_point_as_settings_gives_the_same_plan_through_the_command_line():
    plan = plan_with("search.over=[scales, keep_ratio, balance]", "align.balance_search={}")
    point = dict(zip([f"scale.{name}" for name in MODELS], [0.1 + 0.2, 1.0, 1 / 3, 1.25], strict=True))
    point |= {"keep_ratio": 0.05, "balance": 0.3}
    there = plan_at(plan, point)
    assert there.align.balance_search is None
    assert there.merge.options["scales"] == [0.1 + 0.2, 1.0, 1 / 3, 1.25]
    assert plan_with("search.over=[scales, keep_ratio, balance]", *settings(plan, point)) == there
    assert yaml.safe_load(yaml.safe_dump(overlay(plan, point))) == overlay(plan, point)


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (
            ["merge={method: ties}"],
            "merge.method: only coefficients of 'pcb' can be searched, not those of 'ties'",
        ),
        (["search.split=validatoin"], "search.split: 'validatoin' is not a split of .*; did you mean 'validation'"),
        (["search.split=test"], "search.split: .*are measured on 'test'; search on other data"),
        (["datasets.fashion.label_column=lable"], "label_column: .* has no column 'lable'; did you mean 'label'"),
        (["search.over=[lambda]"], r"search.over\[0\]: 'lambda' is not one of"),
        (["search.over=[scale, scales]"], "search.over: scale multiplies what scales already weigh"),
        (["search.over=[scale, scale]"], "search.over: 'scale' is listed twice"),
        (["search.over=[]"], "search.over: "),
        (["search.lambdas={low: 1, high: 2}"], "search.lambdas: unknown key"),
        (["search.scales={low: 1.3, high: 0.8}"], r"search.scales: low 1.3 must be less than high 0.8"),
        (["search.keep_ratio=[0.1, 1.5]"], r"search.keep_ratio\[1\]: "),
        (["search.over=[balance]", "align=null"], "search.over: there is no balance to search"),
        (["search.method=bayes"], "search.method: 'bayes' is not one of 'cma', 'tpe' or 'grid'"),
        (["search.trials=0"], "search.trials: "),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(overrides, fault):
    import re

    with pytest.raises(PlanError) as error:
        plan_with(*overrides)
    assert any(re.search(fault, line) for line in error.value.faults), error.value.faults


def test_models_of_one_base_have_no_balance():
    import json

    raw = load_plan("params.yaml")
    team = [checkpoint.model_dump() for checkpoint in raw.checkpoints if "base-a" in (checkpoint.name, checkpoint.base)]
    tasks = [task.model_dump() for task in raw.tasks[:2]]
    plan = plan_with(f"checkpoints={json.dumps(team)}", f"tasks={json.dumps(tasks)}", "search.over=[balance]")
    with pytest.raises(InputError, match="no balance to search"):
        search_space(plan, plan.search)
