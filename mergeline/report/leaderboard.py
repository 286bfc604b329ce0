"""The ranking of the cells of a comparison: the best first, beside what each of them was set to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from mergeline.evaluation.score import Score
from mergeline.plan import Plan
from mergeline.report.result import RowScores

Value = str | int | float


class LeaderboardRow(BaseModel):
    """A cell by its name, its settings of `align` and `merge`, and what its merged model scored.

    choice: what it scored on the data that chooses among the cells of one method; chosen: whether it is the best there.
    """

    model_config = ConfigDict(frozen=True)

    cell: str
    method: str
    settings: dict[str, Value]
    scores: RowScores
    choice: Score | None = None
    chosen: bool = False


class Leaderboard(BaseModel):
    """All cells of a comparison, the best first. split: of the data that chose, if any."""

    model_config = ConfigDict(frozen=True)

    plan: str
    metric: Literal["mean", "joint"]
    split: str | None = None
    rows: list[LeaderboardRow]

    @classmethod
    def of(cls, plan: Plan, cells: Mapping[str, tuple[Plan, RowScores, RowScores | None]]) -> Self:
        """Rank cells by what they score; equal ones stay in their order.

        cells: the plan of each, its scores, and those on the data that chooses.
        """
        metric = plan.compare.metric if plan.compare else "mean"
        choose = plan.compare.choose if plan.compare else None
        named = _settings({name: cell for name, (cell, *_) in cells.items()})
        rows = [
            LeaderboardRow(
                cell=name,
                method=cell.merge.method,
                settings=named[name],
                scores=scores,
                choice=tried.by(metric) if tried else None,
            )
            for name, (cell, scores, tried) in cells.items()
        ]
        best = _best_of_each_method(rows)
        rows = [row.model_copy(update={"chosen": best.get(row.method) == row.cell}) for row in rows]
        rows.sort(key=lambda row: -row.scores.by(metric).goodness)
        return cls(plan=plan.name, metric=metric, split=choose.split if choose else None, rows=rows)

    @property
    def facts(self) -> dict[str, str | int]:
        """In a few words, for logs and messages."""
        return {"cells": len(self.rows), "best": self.rows[0].cell}

    @property
    def best(self) -> RowScores:
        """The scores of the first row."""
        return self.rows[0].scores

    def table(self) -> list[dict[str, Value]]:
        """One row per cell, shares in percent: rank, name, mean and joint accuracy, tasks, then the settings."""
        rows: list[dict[str, Value]] = []
        for rank, row in enumerate(self.rows, start=1):
            scores = row.scores.summary | row.scores.tasks
            choice: dict[str, Value] = {}
            if row.choice is not None:
                choice = _with_error(f"{self.metric} on {self.split}", row.choice)
                choice["chosen"] = "yes" if row.chosen else ""
            measured = {key: value for name, score in scores.items() for key, value in _with_error(name, score).items()}
            rows.append({"rank": rank, "cell": row.cell, **measured, **choice, **row.settings})
        return rows

    def lines(self) -> list[str]:
        """The ranking for a terminal."""
        wide = max(len(row.cell) for row in self.rows)
        return [
            f"{rank:>3}  {row.cell:<{wide}}  {row.scores.mean}{_joint(row.scores)}"
            + (f"  on {self.split} {row.choice}" if row.choice else "")
            + ("  chosen" if row.chosen else "")
            for rank, row in enumerate(self.rows, start=1)
        ]

    def metrics(self) -> dict[str, Any]:
        """Plain numbers by cell, in [0, 1], for metrics.json: DVC shows and compares them."""
        return {"best": self.best.numbers(), "cells": {row.cell: row.scores.numbers() for row in self.rows}}


def _best_of_each_method(rows: list[LeaderboardRow]) -> dict[str, str]:
    """Merging method -> its best cell by the data that chooses; nothing where there is no such data."""
    best: dict[str, LeaderboardRow] = {}
    for row in rows:
        before = best.get(row.method)
        if row.choice and (before is None or before.choice is None or row.choice.goodness > before.choice.goodness):
            best[row.method] = row
    return {method: row.cell for method, row in best.items()}


def _settings(cells: Mapping[str, Plan]) -> dict[str, dict[str, Value]]:
    """Of every cell, the fields of `align` and `merge` that any of them sets; empty where a cell has no such field."""
    written = [dict(_fields(cell, exclude_unset=True)) for cell in cells.values()]
    names = list(
        dict.fromkeys(["align.space", "align.method", "merge.method", *(key for row in written for key in row)])
    )
    found = {}
    for cell, plan in cells.items():
        known = dict(_fields(plan, exclude_unset=False))
        if plan.align and plan.align.balance_search:
            known["align.balance"] = "searched"
        found[cell] = {name: known.get(name, "") for name in names}
    return found


def _fields(plan: Plan, *, exclude_unset: bool) -> Iterator[tuple[str, Value]]:
    sections = {"align": plan.align, "merge": plan.merge}
    for section, said in sections.items():
        dumped = said.model_dump(mode="json", exclude_unset=exclude_unset) if said else {}
        for name, value in dumped.items():
            plain = isinstance(value, int | float | str) and not isinstance(value, bool)
            yield f"{section}.{name}", value if plain else "" if value is None else str(value)


def _with_error(name: str, score: Score) -> dict[str, Value]:
    digits = 2 if score.measure == "share" else 4
    return {
        name: round(score.scale * score.value, digits),
        f"{name} ±": round(score.scale * score.standard_error, digits),
    }


def _joint(scores: RowScores) -> str:
    return f"  joint {scores.joint}" if scores.joint else ""
