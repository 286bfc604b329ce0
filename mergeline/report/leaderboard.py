"""The ranking of a grid of runs: the best first."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from mergeline.report.result import RowScores


class LeaderboardRow(BaseModel):
    """A cell of the grid by its settings, and what its merged model scored."""

    model_config = ConfigDict(frozen=True)

    cell: str
    scores: RowScores


class Leaderboard(BaseModel):
    """All cells of a grid."""

    model_config = ConfigDict(frozen=True)

    plan: str
    rows: list[LeaderboardRow]

    @property
    def facts(self) -> dict[str, str | int]:
        """In a few words, for logs and messages."""
        return {"cells": len(self.rows), "best": self.rows[0].cell}

    def ranked(self, metric: Literal["mean", "joint"]) -> Self:
        """The best first; equal ones in the order of the grid."""
        rows = sorted(self.rows, key=lambda row: -getattr(row.scores, metric).value)
        return self.model_copy(update={"rows": rows})

    def table(self) -> list[dict[str, str | float]]:
        """One row per cell, scores in percent."""
        rows: list[dict[str, str | float]] = []
        for rank, row in enumerate(self.rows, start=1):
            tasks = {name: _percent(score.value) for name, score in row.scores.tasks.items()}
            both = {"mean": row.scores.mean, "joint": row.scores.joint}
            errors = {name: _percent(score.standard_error) for name, score in both.items()}
            total = {
                key: value
                for name, score in both.items()
                for key, value in ((name, _percent(score.value)), (f"{name} ±", errors[name]))
            }
            rows.append({"rank": rank, "cell": row.cell, **total, **tasks})
        return rows


def _percent(share: float) -> float:
    return round(100 * share, 2)
