"""The gates of a promotion: examples with their numbers, and laws that hold for all scores."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mergeline.evaluation.score import Score
from mergeline.plan import Promotion
from mergeline.plan_file import PlanError, load_plan
from mergeline.promotion import Measured, difference, judge, measured
from mergeline.report.result import Comparison, RowScores

MODEL = "registry.model=two-teams"


def score(value, error=0.01):
    return Score(value, error, 500)


def model(*values, own=(), data="same", error=0.01):
    tasks = {f"t{i}": score(value, error) for i, value in enumerate(values)}
    mean = score(sum(values) / len(values), error)
    return Measured(tasks, mean, mean, {f"t{i}": score(value, error) for i, value in enumerate(own)}, data)


def refused(gates, candidate, champion=None):
    return [verdict.gate for verdict in judge(gates, candidate, champion) if not verdict.passed]


def test_a_floor_is_a_number_for_every_task_or_for_those_named():
    assert refused(Promotion(floor=0.5), model(0.5, 0.499)) == ["floor of t1"]
    assert refused(Promotion(floor={"t0": 0.6}), model(0.5, 0.1)) == ["floor of t0"]
    assert refused(Promotion(floor={"other": 0.1}), model(0.5)) == ["floor of other"]
    assert refused(Promotion(floor=None), model(0.0)) == []


def test_a_floor_by_name_holds_for_a_task_outside_and_one_for_all_does_not():
    candidate = replace(model(0.9), outside={"other": score(0.2)})
    assert refused(Promotion(floor={"other": 0.3}), candidate) == ["floor of other"]
    assert refused(Promotion(floor={"other": 0.1}), candidate) == []
    assert refused(Promotion(floor=0.5), candidate) == []


def test_a_refusal_says_by_how_much():
    [verdict] = judge(Promotion(floor=0.5), model(0.463), None)
    assert verdict.excess == pytest.approx(-0.037)
    assert verdict.sentence == "46.3 ± 1.0 is 3.7 below the floor of 50.0"


def test_a_drop_counts_beyond_the_standard_errors_of_the_difference():
    gates = Promotion(max_drop=0.1, champion=None, standard_errors=2)
    chance = 2 * math.hypot(0.01, 0.01)  # 2.83 points
    own = [0.9]
    assert refused(gates, model(0.8, own=own)) == []
    assert refused(gates, model(0.8 - chance + 0.001, own=own)) == []
    assert refused(gates, model(0.8 - chance - 0.001, own=own)) == ["drop of t0"]
    assert refused(gates.model_copy(update={"standard_errors": 0.0}), model(0.799, own=own)) == ["drop of t0"]
    assert refused(gates, model(0.8)) == ["drop of t0"]  # its own model was not measured


def test_a_champion_is_not_to_be_worse_than_chance_explains():
    chance = 2 * math.hypot(0.01, 0.01)
    champion = model(0.8)
    assert refused(Promotion(), model(0.8 - chance + 0.001), champion) == []
    assert refused(Promotion(), model(0.8 - chance - 0.001), champion) == ["champion"]
    better = Promotion(champion="better")
    assert refused(better, model(0.8 + chance - 0.001), champion) == ["champion"]
    assert refused(better, model(0.8 + chance + 0.001), champion) == []
    assert refused(better, model(0.1)) == []  # nothing to be better than
    assert refused(Promotion(champion=None), model(0.1), champion) == []


def test_scores_on_other_data_do_not_compare():
    [verdict] = judge(Promotion(), model(0.9), model(0.1, data="other"))
    assert not verdict.passed
    assert "measured on other tasks or data" in verdict.sentence


def test_the_standard_error_of_a_difference():
    assert difference(Score(0.8, 0.03, 1), Score(0.7, 0.04, 1)) == (pytest.approx(0.1), pytest.approx(0.05))


def row(name, **tasks):
    scores = {task: score(value) for task, value in tasks.items()}
    return RowScores(name=name, label=name, tasks=scores, mean=score(0.5), joint=score(0.4))


def test_a_task_own_model_is_the_better_of_as_trained_and_reset():
    rows = [row("a", x=0.7), row("a-reset", x=0.8), row("b", x=0.9), row("merged", x=0.6)]
    found = measured(Comparison(plan="p", rows=rows), {"x": "a", "y": "c"}, "data")
    assert (found.own, found.tasks, found.data) == ({"x": score(0.8)}, {"x": score(0.6)}, "data")


def test_what_was_not_measured_passes_no_gate():
    nothing = measured(Comparison(plan="p", rows=[]), {})
    assert refused(Promotion(), nothing, nothing) == ["champion"]
    assert refused(Promotion(floor={"x": 0.0}), nothing) == ["floor of x"]


SHARE = st.floats(0, 1)
ERROR = st.floats(0, 0.2)
SCORES = st.builds(Score, SHARE, ERROR, st.just(100))
GATES = st.builds(
    Promotion,
    floor=st.none() | SHARE,
    max_drop=st.none() | SHARE,
    champion=st.sampled_from([None, "not_worse", "better"]),
    score=st.sampled_from(["mean", "joint"]),
    standard_errors=st.floats(0, 5),
)
TASKS = st.dictionaries(st.sampled_from("abc"), SCORES, min_size=1)


@st.composite
def measured_models(draw):
    tasks = draw(TASKS)
    own = {name: draw(SCORES) for name in tasks}
    return Measured(tasks, draw(SCORES), draw(SCORES), own, "d")


def lift(found, by):
    def up(one):
        return Score(min(1.0, one.value + by), one.standard_error, one.count)

    tasks = {name: up(one) for name, one in found.tasks.items()}
    return Measured(tasks, up(found.mean), up(found.joint), found.own, found.data)


@given(GATES, measured_models(), measured_models(), SHARE)
def test_a_better_model_passes_what_a_worse_one_passes(gates, candidate, champion, by):
    assert set(refused(gates, lift(candidate, by), champion)) <= set(refused(gates, candidate, champion))


@given(GATES, measured_models(), measured_models())
def test_better_is_stricter_than_not_worse(gates, candidate, champion):
    better, not_worse = (gates.model_copy(update={"champion": kind}) for kind in ("better", "not_worse"))
    assert set(refused(not_worse, candidate, champion)) <= set(refused(better, candidate, champion))


@given(GATES, measured_models(), measured_models(), st.floats(0, 5))
def test_more_standard_errors_forgive_more(gates, candidate, champion, more):
    gates = gates.model_copy(update={"champion": "not_worse"})
    patient = gates.model_copy(update={"standard_errors": gates.standard_errors + more})
    assert set(refused(patient, candidate, champion)) <= set(refused(gates, candidate, champion))


@given(GATES, measured_models())
def test_no_two_models_are_both_better_than_each_other(gates, one):
    gates = gates.model_copy(update={"champion": "better", "floor": None, "max_drop": None})
    assert refused(gates, one, one) == ["champion"]


@given(GATES, measured_models(), measured_models())
def test_excess_and_sentence_agree_with_the_verdict(gates, candidate, champion):
    for verdict in judge(gates, candidate, champion):
        assert ("below" in verdict.sentence) == (verdict.excess < 0), verdict
        if verdict.excess < 0 and gates.standard_errors == 0:
            assert not verdict.passed


@given(measured_models(), st.sampled_from(["tasks", "mean", "own", "error"]))
def test_nan_passes_no_gate(found, where):
    bad = Score(math.nan, 0.1, 1) if where != "error" else Score(0.9, math.nan, 1)
    tasks = dict.fromkeys(found.tasks, bad) if where in ("tasks", "error") else found.tasks
    own = dict.fromkeys(found.own, bad) if where == "own" else found.own
    candidate = Measured(tasks, bad if where in ("mean", "error") else found.mean, found.joint, own, "d")
    said = refused(Promotion(floor=0.0, max_drop=1.0, standard_errors=5), candidate, found)
    expected = {"tasks": {"floor", "drop"}, "mean": {"champion"}, "own": {"drop"}, "error": {"drop", "champion"}}
    assert {gate.partition(" ")[0] for gate in said} >= expected[where]


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        ([MODEL, "promotion.floor={clean: 0.5}"], "promotion.floor: no task is called 'clean'; did you mean 'clean-"),
        ([MODEL, "promotion.floor=50"], "promotion.floor.*less than or equal to 1"),
        (["promotion={}"], "promotion: there is no section `registry`"),
        ([MODEL, "promotion={champion: best}"], "promotion.champion: 'best' is not one of .*better"),
        ([MODEL, "promotion={max_dorp: 1}"], "promotion.max_dorp: unknown key; did you mean 'max_drop'"),
        (
            [MODEL, "promotion={max_drop: 0.1}", "evaluation.compare=[bases]"],
            "max_drop: needs the tasks' own",
        ),
        (["registry.model=a/b"], "registry.model: expected name of the registered model, of letters.*found 'a/b'"),
        ([MODEL, "tracking.enabled=false"], "registry: tracking.enabled is false"),
        ([MODEL, "promotion={}", "tasks=[]"], "promotion.champion: there are no tasks, .* write champion: null"),
    ],
)
def test_faults_of_the_sections_are_named(overrides, fault):
    with pytest.raises(PlanError, match=fault):
        load_plan("params.yaml", overrides)


def test_gates_that_cannot_be_are_refused():
    for wrong in ({"floor": math.nan}, {"standard_errors": math.inf}, {"max_drop": -0.1}):
        with pytest.raises(ValidationError):
            Promotion(**wrong)
