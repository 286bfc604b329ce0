"""What a search says in the end, and what MLflow has of it, however often that was away."""

import shlex
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
import yaml
from mlflow import MlflowClient

from flows import sync_tracking
from mergeline.evaluation.score import Score
from mergeline.plan import Plan, Search
from mergeline.report.result import RowScores
from mergeline.search.study import Trial
from tasks.search_record import NUMBER, SEARCH, SearchRecord, publish_best
from tasks.tracking import Tracker

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


class Searches:
    """Searches of one study, recorded in a store that may be taken away."""

    def __init__(self, patch, folder, uri):
        self._patch, self._folder, self.uri = patch, folder, uri
        self._study, self._record = SimpleNamespace(name="plan-abc", trials=[]), None

    def mlflow(self, up):
        """Records fail at once from now on, or no more."""

        def refuse(*_):
            raise ConnectionError("down")

        self._patch.undo()
        self._patch.setenv("MERGELINE_STATE", str(self._folder))
        self._patch.setenv("MLFLOW_TRACKING_URI", self.uri)
        if not up:
            self._patch.setattr(Tracker, "_connect", refuse)

    def begin(self):
        self._record = SearchRecord(PLAN, Search(over=["scale"]), self._study)

    def trial(self):
        number = len(self._study.trials)
        facts = {"scores": scores(0.5).model_dump(mode="json")}
        self._study.trials.append(Trial(number, {"scale": 1.0}, 0.5 + number / 100, facts))
        self._record.add(self._study.trials[-1])

    def finish(self):
        trials = self._study.trials
        self._record.finish(trials, publish_best(PLAN, Search(over=["scale"]), trials, scores(0.4), self._folder))
        return self._record.run

    def check(self, trials, status="FINISHED"):
        """Each trial once, all children of one run, nothing waits."""
        client = MlflowClient(self.uri)
        runs = client.search_runs([client.get_experiment_by_name("mergeline").experiment_id])
        [parent] = [run for run in runs if run.data.tags.get(SEARCH) == "plan-abc"]
        children = [run for run in runs if run is not parent]
        assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
        assert Counter(run.data.tags[NUMBER] for run in children) == Counter(map(str, range(trials)))
        assert {run.info.status for run in children} == {"FINISHED"}
        assert parent.info.status == status
        if status == "FINISHED":
            assert parent.data.metrics["best/value"] == 0.5 + (trials - 1) / 100
            history = client.get_metric_history(parent.info.run_id, "value")
            assert sorted((point.step, point.value) for point in history) == [
                (number, 0.5 + number / 100) for number in range(trials)
            ]
            assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["plan.yaml"]
        assert not list(self._folder.glob(".mlflow/pending/*/[!.]*"))
        return parent.info.run_id


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Made once: that takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("mlflow")
        patch.setenv("MERGELINE_STATE", str(folder))
        Tracker("none", f"sqlite:///{folder / 'mlflow.db'}").answers()
        return (folder / "mlflow.db").read_bytes()


@pytest.fixture
def searches(tmp_path, database):
    with pytest.MonkeyPatch.context() as patch:
        (tmp_path / "mlflow.db").write_bytes(database)
        yield Searches(patch, tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}")


def delivered(monkeypatch):
    """What the command that delivers returns."""
    monkeypatch.setattr(sys, "argv", ["sync_tracking"])
    return sync_tracking.main()


STEPS = ("begin", "trial", "trial", "trial", "finish")


@pytest.mark.parametrize(
    ("down", "up"), [(0, 5), (0, 2), (0, 4), (1, 5), (2, 3), (2, 5), (4, 5), (3, 4)], ids=lambda step: str(step)
)
def test_a_search_without_mlflow_loses_nothing_and_tells_nothing_twice(searches, monkeypatch, down, up):
    """MLflow is away from before one step to before another one; what waits is delivered, and that twice."""
    for number, step in enumerate(STEPS):
        searches.mlflow(up=not down <= number < up)
        found = getattr(searches, step)()
    assert (found is None) == ((down, up) == (0, 5))
    searches.mlflow(up=True)
    assert delivered(monkeypatch) == 0
    assert delivered(monkeypatch) == 0
    parent = searches.check(trials=3)
    assert found in (None, parent)


@pytest.mark.parametrize("up", [True, False])
def test_a_search_that_was_killed_without_mlflow_is_gone_on_with(searches, monkeypatch, up):
    """And made longer; the longer one may have to do without MLflow, too."""
    searches.mlflow(up=False)
    searches.begin()
    searches.trial()
    searches.mlflow(up=up)
    searches.begin()
    searches.trial()
    searches.finish()
    searches.begin()
    searches.trial()
    searches.finish()
    searches.mlflow(up=True)
    assert delivered(monkeypatch) == 0
    searches.check(trials=3)


def test_what_waits_of_a_search_that_goes_on_is_delivered_by_the_next_run(searches):
    searches.mlflow(up=False)
    searches.begin()
    searches.trial()
    searches.mlflow(up=True)
    assert len(Tracker("mergeline").deliver_pending()) == 2
    searches.check(trials=1, status="RUNNING")
    searches.trial()
    assert searches.finish() == searches.check(trials=2)
