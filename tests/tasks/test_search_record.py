"""What a search says in the end."""

import shlex

import pytest
import yaml

from mergeline.evaluation.score import Score
from mergeline.plan import Plan, Search
from mergeline.report.result import RowScores
from mergeline.search.study import Trial
from tasks.search_record import publish_best

PLAN = Plan(name="plan", checkpoints=[{"name": name, "uri": name} for name in "ab"])


def scores(value):
    score = Score(value, 0.01, 100)
    return RowScores(name="candidate", label="candidate", tasks={"task": score}, mean=score, joint=score)


def outcome(folder, own, values, known=0):
    trials = [
        Trial(number, {"scale": 1.0 + number / 10}, value, {"scores": scores(value).model_dump(mode="json")})
        for number, value in enumerate(values)
    ]
    return publish_best(PLAN, Search(over=["scale"]), trials, scores(own), folder, known=known)


@pytest.mark.parametrize(
    ("trials", "known", "sentence"),
    [
        (1, 0, "1 trial; "),
        (1, 1, "1 trial, made before; "),
        (1, 3, "1 trial, made before; "),
        (3, 0, "3 trials; "),
        (3, 2, "3 trials, 2 of them made before; "),
        (3, 5, "3 trials, all made before; "),
    ],
)
def test_the_summary_counts_the_trials(tmp_path, trials, known, sentence):
    found = outcome(tmp_path, 0.4, [0.5] * trials, known)
    assert found.summary == f"{sentence}trial 0 is best: 50.00 %, the plan 40.00 %"


def test_a_better_trial_comes_with_the_command_that_merges_with_it(tmp_path):
    found = outcome(tmp_path, 0.4, [0.3, 0.5])
    *_, command = found.advice("my plan.yaml", ["merge.onto=first"])
    settings = ["--set", "merge.onto=first", "--set", "merge.scale=1.1"]
    assert shlex.split(command) == ["python", "-m", "flows.merge_and_evaluate", "--params", "my plan.yaml", *settings]
    assert "nothing to gain" not in found.file.read_text()


@pytest.mark.parametrize("best", [0.4, 0.3])
def test_a_plan_that_no_trial_beats_is_kept(tmp_path, best):
    found = outcome(tmp_path, 0.4, [best, 0.2])
    assert found.advice("params.yaml", []) == [
        "2 trials; none is better than the plan itself (40.00 %)",
        f"keep the plan as it is; the best of the trials lies in {found.file}",
    ]
    assert "# None of the trials is better than the plan itself" in found.file.read_text()
    assert yaml.safe_load(found.file.read_text()) == {"merge": {"scale": 1.0}}
