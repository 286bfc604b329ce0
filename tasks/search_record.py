"""The record of a search in MLflow: one run, every trial a child of it. It follows from the trials in the storage.

While MLflow does not answer, records wait in the outbox (`tasks/outbox.py`). What a process that was killed between a
trial and its record did not write down is added when the search is run again.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from mergeline.comparison import RESULT, metric_of_mean
from mergeline.evaluation.kinds import NAMES, WORDS, shown
from mergeline.evaluation.score import Measure
from mergeline.plan import Plan, Search
from mergeline.report.result import Comparison, RowScores
from mergeline.search.space import Point, overlay, settings
from mergeline.search.study import Study, Trial, best_of
from tasks.tracking import Tracker

SEARCH, NUMBER = "mergeline.search", "mergeline.trial"  # tags
RUNNERS_UP = 3  # in the table


class SearchRecord:
    """Writes trials as they come. While MLflow does not answer, they are kept like every record, for later."""

    def __init__(self, plan: Plan, search: Search, study: Study) -> None:
        self._plan, self._study = plan, study.name
        self._enabled, self._later = plan.tracking.enabled, False
        self._tracker = Tracker(plan.tracking.experiment)
        self._params = {"merge": plan.merge.model_dump(mode="json"), "search": _settings(search)}
        self._run: str | None = None
        if not self._enabled:
            return
        self._tracker.deliver_pending()
        self._write("begun")
        known = self._tracker.parts(self._identity(), NUMBER) if self._run else None
        self._later = known is None
        for trial in study.trials:
            if known is None or str(trial.number) not in known:
                self.add(trial)

    @property
    def run(self) -> str | None:
        """Id of the run; None where MLflow has none yet."""
        return self._run

    def add(self, trial: Trial) -> None:
        """One child run."""
        if not self._enabled:
            return
        child = self._tracker.record(
            f"trial {trial.number}",
            identity=self._identity(trial.number),
            part_of=self._identity(),
            params=overlay(self._plan, trial.point),
            metrics={"value": trial.value} | trial.point | _scores(trial.facts),
            tags={NUMBER: str(trial.number)},
            later=self._later,
        )
        self._later = self._later or child is None  # asking again for every trial would cost the search its time

    def finish(self, trials: list[Trial], outcome: SearchOutcome) -> None:
        """The best of all trials beside what the plan itself scores, and how the best came about."""
        if not self._enabled:
            return
        if self._later and self._tracker.answers():
            self._tracker.deliver_pending()
            self._later = False
        best, values = best_of(trials), [trial.value for trial in trials]
        self._write(
            "ended",
            metrics={"best/value": best.value, "best/trial": best.number, "plan/value": outcome.plan_value}
            | {f"best/{name}": value for name, value in best.point.items()},
            series={"value": values, "best so far": list(accumulate(values, max))},
            artifacts=[outcome.file],
        )

    def _write(self, phase: Literal["begun", "ended"], **found: Any) -> None:
        """What is known of the search itself."""
        run = self._tracker.record(
            f"{self._plan.name} search",
            identity=self._identity(),
            phase=phase,
            params=self._params,
            tags={SEARCH: self._study},
            later=self._later,
            **found,
        )
        self._run = run or self._run

    def _identity(self, trial: int | None = None) -> str:
        """That of the search, or of one of its trials: the same whoever goes on with it."""
        name = self._study if trial is None else f"{self._study} {trial}"
        return hashlib.sha256(name.encode()).hexdigest()[:32]


class SearchOutcome(BaseModel):
    """What a search comes to. point: the best one; settings: it as arguments of `--set`; file: the same as YAML.

    value, plan_value: what is searched for the largest of, so perplexities and losses with a minus; measure: of what.
    trials_before: how many of the trials had been made by an earlier search.
    """

    model_config = ConfigDict(frozen=True)

    comparison: Comparison
    number: int
    value: float
    plan_value: float
    point: Point
    settings: list[str]
    file: Path
    trials: int
    trials_before: int = 0
    measure: Measure = "share"
    mlflow_run: str | None = None

    @property
    def summary(self) -> str:
        """One sentence."""
        if not self.improves:
            return f"{self._made}; none is better than the plan itself ({shown(self.plan_value, self.measure, 2)})"
        best = f"trial {self.number} is best: {shown(self.value, self.measure, 2)}"
        return f"{self._made}; {best}, the plan {shown(self.plan_value, self.measure, 2)}"

    @property
    def improves(self) -> bool:
        """Whether the best trial is better than the plan itself."""
        return self.value > self.plan_value

    def advice(self, params: str, overrides: Sequence[str]) -> list[str]:
        """The summary, and what to do now, in lines; params, overrides: the plan that was searched."""
        if not self.improves:
            return [self.summary, f"keep the plan as it is; the best of the trials lies in {self.file}"]
        chosen = [argument for setting in (*overrides, *self.settings) for argument in ("--set", setting)]
        command = shlex.join(["python", "-m", "flows.merge_and_evaluate", "--params", params, *chosen])
        return [self.summary, f"the best coefficients: {self.file}; to merge with them:", command]

    @property
    def _made(self) -> str:
        made = f"{self.trials} trial" if self.trials == 1 else f"{self.trials} trials"
        if not self.trials_before:
            return made
        if self.trials_before < self.trials:
            return f"{made}, {self.trials_before} of them made before"
        return f"{made}, made before" if self.trials == 1 else f"{made}, all made before"


def publish_best(
    plan: Plan, search: Search, trials: list[Trial], own: RowScores, folder: Path, *, known: int = 0
) -> SearchOutcome:
    """Write the best coefficients as sections of a plan; the table has the plan, the runners-up and the best.

    known: how many trials there were before this search.
    """
    best = best_of(trials)
    plan_value = own.by(search.metric).goodness
    of = WORDS[plan.measure] if plan.measure != "share" else NAMES[metric_of_mean(plan)].capitalize()
    file = folder / f"{plan.name}.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    about = (
        f"# Trial {best.number} of {len(trials)} of {plan.name}, by {search.method} over {', '.join(search.over)}.\n"
        f"# {of.capitalize()} ({search.metric}) on '{search.split}': {_number(best.value, plan)}; the plan itself: "
        f"{_number(plan_value, plan)}.\n"
    )
    if best.value <= plan_value:
        about += "# None of the trials is better than the plan itself: there is nothing to gain from these values.\n"
    file.write_text(about + yaml.safe_dump(overlay(plan, best.point), sort_keys=False))
    others = sorted((trial for trial in trials if trial.point != best.point), key=lambda trial: -trial.value)
    runners_up = list({repr(trial.point): trial for trial in reversed(others)}.values())[-RUNNERS_UP:]
    rows = [own.model_copy(update={"name": "plan", "label": "the plan itself"})]
    rows += [_row(plan, trial, f"trial-{trial.number}") for trial in runners_up]
    return SearchOutcome(
        comparison=Comparison(
            plan=f"{plan.name} on {search.split}", rows=[*rows, _row(plan, best, RESULT)], metric=metric_of_mean(plan)
        ),
        number=best.number,
        value=best.value,
        plan_value=plan_value,
        point=best.point,
        settings=settings(plan, best.point),
        file=file,
        trials=len(trials),
        trials_before=min(known, len(trials)),
        measure=plan.measure,
    )


def _number(goodness: float, plan: Plan) -> str:
    return f"{goodness:.4f}" if plan.measure == "share" else shown(goodness, plan.measure, 4)


def _row(plan: Plan, trial: Trial, name: str) -> RowScores:
    shown = ", ".join(settings(plan, trial.point, show=lambda value: f"{value:.3g}")).replace("merge.", "")
    scores = RowScores.model_validate(trial.facts["scores"])
    return scores.model_copy(update={"name": name, "label": f"trial {trial.number}: {shown}"})


def _settings(search: Search) -> dict[str, Any]:
    """What does not change when a search is made longer."""
    searched = {"method", "seed", "split", "metric", "over", *search.over}
    return search.model_dump(mode="json", include=searched)


def _scores(facts: Mapping[str, Any]) -> dict[str, float]:
    row = facts.get("scores", {})
    scores = {name: row[name]["value"] for name in ("mean", "joint") if row.get(name)}
    return scores | {f"task/{task}": score["value"] for task, score in row.get("tasks", {}).items()}
