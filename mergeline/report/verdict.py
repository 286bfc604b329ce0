"""Is the merged model good enough? It is compared with what one could have used in its place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mergeline.comparison import RESULT
from mergeline.evaluation.score import Score, mean_score
from mergeline.plan import Plan
from mergeline.report.result import Comparison, own_scores

Standing = Literal["above", "about the same", "below"]


@dataclass(frozen=True)
class Beside:
    """What the result is compared with, on the mean of the tasks. difference: how much better the result is."""

    what: str
    score: Score
    difference: float
    standard_error: float

    @property
    def standing(self) -> Standing:
        """Two standard errors decide; they take both scores as independent, which is cautious on the same examples."""
        if abs(self.difference) <= 2 * self.standard_error:
            return "about the same"
        return "above" if self.difference > 0 else "below"

    @property
    def shown(self) -> str:
        """The difference of the numbers themselves, shares in percentage points."""
        scale, digits = self.score.scale, self.score.digits
        number = -self.difference if self.score.lower_is_better else self.difference
        return f"{scale * number:+.{digits}f} ± {scale * self.standard_error:.{digits}f}"

    @property
    def word(self) -> str:
        """The standing in words that hold where lower is better, too."""
        return {"above": "better", "below": "worse"}.get(self.standing, self.standing)


@dataclass(frozen=True)
class Verdict:
    """headline: the answer in one sentence. beside: what it rests on. above: labels of all rows that score higher."""

    headline: str
    standing: Standing | None
    beside: tuple[Beside, ...]
    above: tuple[str, ...]


def verdict(plan: Plan, comparison: Comparison) -> Verdict:
    """Compare with the task models each on its own task, the ensemble and the best average. Needs measured rows."""
    result = comparison.result.mean
    found = {kind: _beside(what, score, result) for kind, what, score in _others(plan, comparison)}
    above = tuple(row.label for row in comparison.rows if row.name != RESULT and row.mean.goodness > result.goodness)
    headline, standing = _headline({kind: other.standing for kind, other in found.items()})
    return Verdict(headline, standing, tuple(found.values()), above)


def _headline(standings: dict[str, Standing]) -> tuple[str, Standing | None]:
    average, models, ensemble = (standings.get(kind) for kind in ("average", "models", "ensemble"))
    if average == "below":
        return "Not good enough: averaging the same models scores better.", "below"
    if average == "about the same" and models != "above":
        return "Not good enough: no better than averaging the same models.", "below"
    if models == "below":
        gain = "Better than averaging, but worse" if average else "Worse"
        return f"{gain} than its own task models, each on its own task.", "below"
    if models is not None:
        how = "As good as" if models == "about the same" else "Better than"
        more = "; the ensemble of all of them is still ahead" if ensemble == "below" else ""
        return f"{how} its own task models, each on its own task{more}.", models
    if ensemble is not None:
        words = {"below": "Worse than", "above": "Better than", "about the same": "As good as"}
        return f"{words[ensemble]} the ensemble of its task models.", ensemble
    if average is not None:
        return "Better than averaging the same models.", "above"
    return "Not compared: the plan measured nothing beside the merged model.", None


def _others(plan: Plan, comparison: Comparison) -> Iterator[tuple[str, str, Score]]:
    rows = {row.name: row for row in comparison.rows}
    own = own_scores(comparison.rows, plan.specialists)
    if own and len(own) == len(plan.specialists):
        yield "models", "its task models, each on its own task", mean_score(list(own.values()))
    if "ensemble" in rows:
        yield "ensemble", rows["ensemble"].label, rows["ensemble"].mean
    if averages := [rows[name] for name in ("average", "aligned-average") if name in rows]:
        best = max(averages, key=lambda row: row.mean.goodness)
        yield "average", best.label, best.mean


def _beside(what: str, score: Score, result: Score) -> Beside:
    error = math.hypot(score.standard_error, result.standard_error)
    return Beside(what, score, result.goodness - score.goodness, error)
