"""The ranking of the cells of a comparison: the best first, beside what each of them was set to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import hypot
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from mergeline.comparison import UNCALIBRATED, metric_of_mean
from mergeline.evaluation.kinds import words_for
from mergeline.evaluation.score import Score, over_repeats
from mergeline.grid import Cell
from mergeline.plan import Plan
from mergeline.report.repeats import RepeatScores, mean_of_repeats, mean_outside
from mergeline.report.result import RowScores

Value = str | int | float


class Measured(BaseModel):
    """A cell in one repeat, what its merged model scored, and what it scored on the data that chooses, if any.

    beside: what the merge scored without its calibration, and what the controls of that did.
    """

    model_config = ConfigDict(frozen=True)

    cell: Cell
    scores: RowScores
    tried: RowScores | None = None
    beside: list[RowScores] = []


class LeaderboardRow(BaseModel):
    """A cell by its name, its settings of `align`, `merge` and `calibrate`, and what its model scored in every repeat.

    method: what data of its own chooses among. cell: also the choice itself, where every repeat may choose another one.
    beside: the calibrated cell that this row tells something about; it has no rank, and is never chosen.
    """

    model_config = ConfigDict(frozen=True)

    cell: str
    method: str
    settings: dict[str, Value]
    repeats: list[RepeatScores]
    beside: str = ""

    @property
    def label(self) -> str:
        """Its name where it stands below the cell that it tells about."""
        return f"  {self.cell.removeprefix(f'{self.beside}, ')}" if self.beside else self.cell

    @property
    def scores(self) -> RowScores:
        """Mean over the repeats."""
        return mean_of_repeats([one.scores for one in self.repeats])

    @property
    def outside(self) -> Score | None:
        """Mean over the repeats of the mean of the tasks outside; None where a repeat has none."""
        found = [score for one in self.repeats if (score := mean_outside(one.scores))]
        return over_repeats(found) if len(found) == len(self.repeats) else None

    @property
    def choice(self) -> Score | None:
        """The same of the data that chooses."""
        tried = [one.choice for one in self.repeats if one.choice]
        return over_repeats(tried) if tried else None

    @property
    def chosen(self) -> bool:
        """Whether the data that chooses takes it in every repeat."""
        return all(one.chosen for one in self.repeats)


class Leaderboard(BaseModel):
    """All cells of a comparison, the best first, each calibrated one with its controls behind it.

    split: of the data that chose, if any; measured_by: the metric of the tasks, "mean" where they have several.
    """

    model_config = ConfigDict(frozen=True)

    plan: str
    metric: Literal["mean", "joint"]
    measured_by: str = "accuracy"
    split: str | None = None
    rows: list[LeaderboardRow]

    @classmethod
    def of(cls, plan: Plan, measured: Sequence[Measured]) -> Self:
        """Rank cells by what they score in the mean of their repeats; equal ones stay in their order."""
        metric = plan.compare.metric if plan.compare else "mean"
        choose = plan.compare.choose if plan.compare else None
        firsts = {one.cell.name: one.cell.plan for one in reversed(measured)}
        named = _settings({name: firsts[name] for name in dict.fromkeys(one.cell.name for one in measured)})
        rows = [
            LeaderboardRow(
                cell=name,
                method=_method(firsts[name]),
                settings=settings,
                repeats=[_repeat(one, metric) for one in measured if one.cell.name == name],
            )
            for name, settings in named.items()
        ]
        rows = _chosen(rows) if choose else rows
        rows.sort(key=lambda row: -row.scores.by(metric).goodness)
        rows = [one for row in rows for one in (row, *_beside(row, measured))]
        split, measured_by = choose.split if choose else None, metric_of_mean(plan)
        return cls(plan=plan.name, metric=metric, measured_by=measured_by, split=split, rows=rows)

    @property
    def words(self) -> str:
        """What the numbers of the tables are."""
        return words_for(self.measured_by, self.best.mean.measure)

    @property
    def facts(self) -> dict[str, str | int]:
        """In a few words, for logs and messages."""
        return {"cells": len(self.ranks), "best": self.rows[0].cell}

    @property
    def ranks(self) -> dict[str, int]:
        """The places of the cells, from 1; what only stands beside one has none."""
        return {row.cell: rank for rank, row in enumerate((row for row in self.rows if not row.beside), start=1)}

    @property
    def best(self) -> RowScores:
        """The scores of the first row."""
        return self.rows[0].scores

    @property
    def repeats(self) -> list[str]:
        """Names of the repeats; one without a name where everything is tried once."""
        return [one.repeat for one in self.rows[0].repeats]

    def behind(self, row: LeaderboardRow) -> Score:
        """How much worse than the first row one scores, with the error of the mean of the differences."""
        return over_repeats(
            [
                Score(
                    first.goodness - own.goodness,
                    hypot(first.standard_error, own.standard_error),
                    own.count,
                    own.measure,
                )
                for one, other in zip(self.rows[0].repeats, row.repeats, strict=True)
                for first, own in [(one.scores.by(self.metric), other.scores.by(self.metric))]
            ]
        )

    def table(self) -> list[dict[str, Value]]:
        """One row per cell, shares in percent: rank, name, mean and joint accuracy, tasks, settings.

        With repeats, all of that is the mean over them, and every group of them has columns of its own.
        """
        rows: list[dict[str, Value]] = []
        ranks = self.ranks
        for row in self.rows:
            more = _with_error("outside", row.outside) if row.outside else {}
            if row.choice is not None:
                more |= _with_error(f"{self.metric} on {self.split}", row.choice)
                more["chosen"] = self._chosen(row)
            if len(self.repeats) > 1:
                more |= _with_error("behind the first", self.behind(row))
                for group, scores in _groups(row, self.metric).items():
                    more |= _with_error(group, over_repeats(scores))
            rank = ranks.get(row.cell, "")
            rows.append({"rank": rank, "cell": row.cell, **_columns(row.scores), **more, **row.settings})
        return _even(rows)

    def _chosen(self, row: LeaderboardRow) -> str:
        times = sum(one.chosen for one in row.repeats)
        return "yes" if row.chosen else f"{times} of {len(row.repeats)}" if times else ""

    def table_of_repeats(self) -> list[dict[str, Value]]:
        """One row per repeat and cell, in percent, with the errors of the examples; empty where all is tried once."""
        if self.repeats == [""]:
            return []
        found = [
            {"repeat": one.repeat, "cell": row.cell}
            | _columns(one.scores)
            | (_with_error(f"{self.metric} on {self.split}", one.choice) if one.choice else {})
            | ({"chosen": "yes" if one.chosen else ""} if self.split else {})
            for place in range(len(self.repeats))
            for row in self.rows
            for one in [row.repeats[place]]
        ]
        return _even(found)

    def lines(self) -> list[str]:
        """The ranking for a terminal."""
        wide, ranks = max(len(row.label) for row in self.rows), self.ranks
        lines = [
            f"{ranks.get(row.cell, ''):>3}  {row.label:<{wide}}  {row.scores.mean}{_joint(row.scores)}"
            + (f"  on {self.split} {row.choice}" if row.choice else "")
            + (f"  chosen {self._chosen(row)}".removesuffix(" yes") if self._chosen(row) else "")
            for row in self.rows
        ]
        if len(self.repeats) > 1:
            lines.append(f"  means over {len(self.repeats)} repeats ± standard error over these")
        return lines

    def metrics(self) -> dict[str, Any]:
        """Plain numbers by cell, in [0, 1], for metrics.json: DVC shows and compares them."""
        found: dict[str, Any] = {"best": _numbers(self.best), "cells": {r.cell: _numbers(r.scores) for r in self.rows}}
        if self.repeats != [""]:
            found["repeats"] = {r.cell: {one.repeat: _numbers(one.scores) for one in r.repeats} for r in self.rows}
        return found


def _repeat(one: Measured, metric: Literal["mean", "joint"]) -> RepeatScores:
    choice = one.tried.by(metric) if one.tried else None
    return RepeatScores(repeat=one.cell.repeat, group=one.cell.group, scores=one.scores, choice=choice)


def _method(plan: Plan) -> str:
    """What a cell is a setting of: with a search, or a calibration, a merging method is another one."""
    searched = f", {plan.search.trials} trials" if plan.search else ""
    return f"{plan.merge.method}{searched}{', calibrated' if plan.calibrate else ''}"


def _beside(row: LeaderboardRow, measured: Sequence[Measured]) -> Iterator[LeaderboardRow]:
    """What stands beside a calibrated cell, as far as it does in every repeat."""
    repeats = [one for one in measured if one.cell.name == row.cell]
    for beside in repeats[0].beside if repeats else ():
        found = [other for one in repeats for other in one.beside if other.name == beside.name]
        if len(found) < len(repeats):
            continue
        bare, same = beside.name == UNCALIBRATED, len({other.label for other in found}) == 1
        told = "not calibrated" if bare else beside.label if same else beside.name
        yield LeaderboardRow(
            cell=f"{row.cell}, {told}",
            method=row.method,
            settings={name: "" if bare and name.startswith("calibrate.") else x for name, x in row.settings.items()},
            repeats=[
                RepeatScores(repeat=one.cell.repeat, group=one.cell.group, scores=scores)
                for one, scores in zip(repeats, found, strict=True)
            ],
            beside=row.cell,
        )


def _even(rows: Sequence[Mapping[str, Value]]) -> list[dict[str, Value]]:
    """Every row with every column."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name, "") for name in names} for row in rows]


def _chosen(rows: list[LeaderboardRow]) -> list[LeaderboardRow]:
    """Mark the best cell of every method in every repeat, by the data that chooses. Where there are several repeats, a
    method of several cells gets a row of what was chosen: that is what the method with its choice is worth."""
    marked = {row.cell: [one.model_copy() for one in row.repeats] for row in rows}
    rows = [row.model_copy(update={"repeats": marked[row.cell]}) for row in rows]
    chosen: dict[str, list[RepeatScores]] = {}
    for method in dict.fromkeys(row.method for row in rows):
        cells = [row.cell for row in rows if row.method == method]
        for place in range(len(rows[0].repeats)):
            best = max(cells, key=lambda cell: _goodness(marked[cell][place].choice))
            marked[best][place] = marked[best][place].model_copy(update={"chosen": True})
            if len(cells) > 1 and len(rows[0].repeats) > 1:
                chosen.setdefault(method, []).append(marked[best][place])
    settings = dict.fromkeys(rows[0].settings, "")
    return rows + [
        LeaderboardRow(
            cell=f"{method}, as chosen in each repeat",
            method=method,
            settings={**settings, "merge.method": method},
            repeats=repeats,
        )
        for method, repeats in chosen.items()
    ]


def _goodness(score: Score | None) -> float:
    return score.goodness if score else float("-inf")


def _groups(row: LeaderboardRow, metric: Literal["mean", "joint"]) -> dict[str, list[Score]]:
    """The scores of a row by group of repeats; nothing where all are one group."""
    found: dict[str, list[Score]] = {}
    for one in row.repeats:
        found.setdefault(one.group, []).append(one.scores.by(metric))
    return found if len(found) > 1 else {}


def _columns(scores: RowScores) -> dict[str, Value]:
    named = scores.summary | scores.tasks
    named |= {f"outside {task}": score for task, score in scores.outside.items()}
    return {key: value for name, score in named.items() for key, value in _with_error(name, score).items()}


def _numbers(scores: RowScores) -> dict[str, Any]:
    outside = {task: score.value for task, score in scores.outside.items()}
    return scores.numbers() | ({"outside": outside} if outside else {})


def _settings(cells: Mapping[str, Plan]) -> dict[str, dict[str, Value]]:
    """Of every cell, the fields of `align`, `merge` and `calibrate` that any sets; empty where it has no such field.

    A search shows as the value of what is searched, and of a calibration what it does, written down or not.
    """
    written = [dict(_fields(cell, exclude_unset=True)) for cell in cells.values()]
    always = ["align.space", "align.method", "merge.method"]
    if any(plan.calibrate for plan in cells.values()):
        always += ["calibrate.centre", "calibrate.last_layer", "calibrate.layers"]
    names = list(dict.fromkeys([*always, *(key for row in written for key in row)]))
    names = [name for name in names if name != "align.balance_search"]
    found = {}
    for cell, plan in cells.items():
        known = dict(_fields(plan, exclude_unset=False))
        if plan.align and plan.align.balance_search:
            known["align.balance"] = "searched"
        if plan.search:
            known |= {name: "searched" for field in plan.search.over for name in names if name == f"merge.{field}"}
        found[cell] = {name: known.get(name, "") for name in names}
    return found


def _fields(plan: Plan, *, exclude_unset: bool) -> Iterator[tuple[str, Value]]:
    sections = {"align": plan.align, "merge": plan.merge, "calibrate": plan.calibrate}
    for section, said in sections.items():
        dumped = said.model_dump(mode="json", exclude_unset=exclude_unset) if said else {}
        if plan.calibrate and "control_data" in dumped and (other := plan.calibrate.control_data):
            dumped["control_data"] = other.place
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
