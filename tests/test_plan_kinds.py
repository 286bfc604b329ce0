"""Plans with tasks of several kinds: what each asks of data, metrics, searches and gates."""

import json
import re

import pytest

from mergeline.comparison import comparison_rows
from mergeline.plan_file import load_plan
from tests.plans import faults_of, in_the_project  # noqa: F401

HEAD = ["tasks[0].kind=head", "tasks[0].head=fc"]
TEXTS = ["datasets.fashion.text_column=domain", "datasets.fashion.tokenizer=tests"]


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["tasks[0].kind=hed"], r"tasks\[0\].kind: no such kind of task; write .*; did you mean 'head'"),
        (["tasks[0].kind=no.such:thing"], r"tasks\[0\].kind: there is no module 'no.such' to import"),
        (
            ["tasks[0].metric=perplexity"],
            r"tasks\[0\].metric: 'perplexity' does not fit a task of the kind prototypes; write accuracy, or balanced",
        ),
        (
            ["tasks[0].kind=causal_lm", "tasks[0].classes=null", "tasks[0].metric=accuracy"],
            r"tasks\[0\].metric: 'accuracy' does not fit a task of the kind causal_lm; write perplexity",
        ),
        (["tasks[0].kind=causal_lm"], r"tasks\[0\].classes: a task of the kind causal_lm has none; leave them out"),
        (["tasks[0].kind=causal_lm"], r"datasets.fashion.text_column: is missing; tasks\[0\] reads texts"),
        (["tasks[0].kind=seq2seq", *TEXTS], "datasets.fashion.target_column: .* has no column 'target'"),
        (["tasks[0].classes=null"], r"tasks\[0\].classes: is missing; name the classes whose prototypes"),
        (
            ["datasets.fashion.prototypes=null"],
            r"datasets.fashion.prototypes: is missing; tasks\[0\] is judged against",
        ),
        (["tasks[0].head=fc"], r"tasks\[0\].head: a task of the kind prototypes has none; .* or write kind: head"),
        (
            [*HEAD, "tasks[0].checkpoint=null"],
            r"tasks\[0\].head: is taken from the task's checkpoint, and there is none",
        ),
        (
            [*HEAD, "align.balance_search={}"],
            "align.balance_search.metric: there is no joint accuracy, because .* mean",
        ),
        ([*HEAD, "compare={metric: joint}"], "compare.metric: there is no joint accuracy"),
        (
            ["tasks[0].kind=json:loads", "tasks[0].classes=null"],
            "tasks: 'clean-02478' by score and 'clean-13569' by accuracy have no common mean to judge a merge by",
        ),
        (
            ["tasks[0].kind=json:loads", "tasks[0].classes=null", "registry.model=x", "promotion={floor: 0.5}"],
            "promotion.floor: 'clean-02478' is measured by score, and this gate is a share of right answers",
        ),
        (
            [*HEAD, *(f"checkpoints[{i}].base=initial" for i in range(6))],
            r"tasks\[0\].head: the checkpoints are adapters, which are merged without a module; leave it out",
        ),
        (
            ["tasks[0].kind=json:loads", "tasks[0].classes=null", "merge={method: fisher}"],
            r"tasks\[0\].kind: 'fisher' weighs models by classifications, and this is none",
        ),
    ],
)
def test_what_a_kind_of_task_asks_of_the_plan_is_named(overrides, fault):
    faults = faults_of(*overrides)
    assert any(re.search(f"params.yaml: {fault}", sentence) for sentence in faults), faults


def test_a_metric_that_is_not_named_is_that_of_the_kind():
    tasks = [{"name": name, "checkpoint": "a-clean-02478", "dataset": "fashion"} for name in "abc"]
    tasks = [task | {"kind": kind} for task, kind in zip(tasks, ("json:loads", "json:dumps", "json:load"), strict=True)]
    plan = load_plan("params.yaml", [f"tasks={json.dumps(tasks)}", "calibration=null", "align=null"])
    assert [task.metric for task in plan.tasks] == ["score"] * 3
    assert plan.joint_tasks == []
    names = {row.name for row in comparison_rows(plan)}
    assert "ensemble" not in names and "a-clean-02478-reset" not in names, "nothing to reset with, no mean of functions"


def test_heads_meet_no_models_of_another_base():
    """The shipped plan has two bases: a head of one of them would read the units of the other in the wrong order."""
    tasks = [task.model_dump(mode="json") | {"kind": "head", "head": "fc"} for task in load_plan("params.yaml").tasks]
    names = {row.name for row in comparison_rows(load_plan("params.yaml", [f"tasks={json.dumps(tasks)}"]))}
    assert "ensemble" not in names
    shared = [task | {"head": None} for task in tasks]
    assert "ensemble" in {
        row.name for row in comparison_rows(load_plan("params.yaml", [f"tasks={json.dumps(shared)}"]))
    }


def test_joint_accuracy_is_that_of_one_label_space():
    plan = load_plan("params.yaml")
    assert plan.joint_tasks == plan.tasks
    assert load_plan("params.yaml", HEAD).joint_tasks == []
    shared = [f"tasks[{i}].kind=head" for i in range(4)]
    assert len(load_plan("params.yaml", shared).joint_tasks) == 4
    assert load_plan("params.yaml", shared[:3]).joint_tasks == []
    assert load_plan("params.yaml", HEAD).heads == ["fc"]
