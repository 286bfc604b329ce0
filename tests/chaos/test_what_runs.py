"""One input of the main job is changed at a time: exactly the stages that depend on it run, all others are cached."""

from collections import Counter

import pytest

pytestmark = pytest.mark.flow

MEASURED = {"reset-normalization": 1, "measure-normalization": 2, "evaluate": 1, "draw-chart": 1}
MERGED = {"merge-range": 3, "merge": 1} | MEASURED
WEIGHED = {"merge-statistics": 1} | MERGED
ALIGNED = {"solve-permutations": 1} | WEIGHED
EVERYTHING = {
    **{"download-checkpoint": 4, "represent-family": 2, "prove-symmetry": 1, "collect-activations": 1},
    **{"weight-similarity": 1, "activation-similarity": 1},
    **ALIGNED,
}

FIELDS = {
    "name=another": {"draw-chart": 1},
    "workers=2": {},
    "range_size=200KB": {},
    "evaluation.batch_size=100": {"evaluate": 1},
    "tasks[0].classes=[0, 2, 4]": {"evaluate": 1, "draw-chart": 1},
    "merge.scale=0.9": MERGED,
    "merge.keep_ratio=0.2": WEIGHED,
    "merge.onto=first": MERGED,
    "align.balance=0.4": ALIGNED,
    "align.space=weight": ALIGNED,
    "calibration.batch_size=50": {},
}
SOURCES = {
    "mergeline.alignment.solve": {},
    "mergeline.evaluation.metrics": {},
    "mergeline.report.chart": {},
    "mergeline.checkpoints.readers": {},
    "tasks.permutations": {},
    "tasks.policy": {},
    "flows.merge_and_evaluate": {},
}


def what_ran(merge):
    return dict(Counter(merge.computed()))


def test_at_first_everything_runs_then_nothing(unbroken):
    assert dict(Counter(unbroken.computed(0))) == EVERYTHING
    assert unbroken.run() == 0
    assert what_ran(unbroken) == {}


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_the_plan(unbroken, field):
    unbroken.run(field)
    assert what_ran(unbroken) == FIELDS[field]


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_of_the_library(unbroken, module):
    """Where its stage makes the same again, what comes after it stays cached."""
    unbroken.run(changed=[module])
    assert what_ran(unbroken) == SOURCES[module]
