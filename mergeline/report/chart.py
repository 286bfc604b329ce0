"""Pictures of scores: every row as two bars with standard errors."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mergeline.comparison import RESULT
from mergeline.evaluation.kinds import NAMES, WORDS
from mergeline.evaluation.score import Score
from mergeline.report.result import Comparison, RowScores

if TYPE_CHECKING:
    from mergeline.report.leaderboard import Leaderboard

TASKS, JOINT, MUTED = "#1f6f8b", "#e07a3f", "0.45"
_LABEL = 44  # characters of a line


def draw_chart(comparison: Comparison, path: Path) -> None:
    """Write a PNG: the mean over the tasks and joint accuracy (if any) of every row, the result on top and in bold."""
    rows = comparison.rows[::-1]
    bold = [row.name == RESULT for row in rows]
    draw_bars(comparison.plan, rows, [row.label for row in rows], bold, path, metric=comparison.metric)


def draw_leaderboard(leaderboard: Leaderboard, path: Path) -> None:
    """Write a PNG: the cells of a comparison, the best on top; in bold what was always chosen, or the best."""
    rows = leaderboard.rows
    bold = [row.chosen if leaderboard.split else place == 0 for place, row in enumerate(rows)]
    labels = [textwrap.fill(row.label, _LABEL) for row in rows]
    repeats = len(leaderboard.repeats)
    title = f"{leaderboard.plan}, compared" + (f": means over {repeats} repeats" if repeats > 1 else "")
    draw_bars(title, [row.scores for row in rows], labels, bold, path, metric=leaderboard.measured_by)


def draw_bars(
    title: str, rows: Sequence[RowScores], labels: Sequence[str], bold: Sequence[bool], path: Path, *, metric: str
) -> None:
    """Write a PNG of rows, from the top; those that are not bold are paler. metric: as of `axis_title`."""
    figure = Figure(figsize=(9, 0.9 + 0.42 * len(rows)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    with mpl.rc_context({"font.size": 9}):
        axes = figure.subplots()
        joint, end = all(row.joint for row in rows), axis_end([row.mean for row in rows])
        for place, row in enumerate(rows):
            alpha = 1.0 if bold[place] else 0.55
            for score, shift, colour in _bars(row):
                axes.barh(
                    place + shift,
                    score.scale * score.value,
                    height=0.36,
                    color=colour,
                    alpha=alpha,
                    xerr=score.scale * score.standard_error,
                    error_kw={"ecolor": MUTED, "elinewidth": 1},
                )
                axes.text(score.scale * (score.value + score.standard_error) + 0.008 * end, place + shift,
                          str(score).partition(" ")[0], va="center", fontsize=7.5, color=MUTED)  # fmt: skip
        axes.set_yticks(range(len(rows)), labels)
        for text, strong in zip(axes.get_yticklabels(), bold, strict=True):
            text.set_fontweight("bold" if strong else "normal")
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(min(0.0, *(row.mean.scale * row.mean.value for row in rows)), end)
        axes.set_xlabel(f"{axis_title(rows[0].mean, metric)} (lines: standard error)")
        axes.spines[["top", "right"]].set_visible(False)
        legend = {"mean of the tasks": TASKS} | ({"joint, all classes": JOINT} if joint else {})
        handles = [mpl.patches.Patch(color=colour) for colour in legend.values()]
        figure.legend(handles, list(legend), loc="outside upper right", ncols=2, frameon=False)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        # no program version inside: the same numbers give the same bytes
        figure.savefig(path, metadata={"Software": None})


def _bars(row: RowScores) -> list[tuple[Score, float, str]]:
    """The bars of a row: score, shift from the row's place, colour."""
    return [(row.mean, -0.19, TASKS)] + ([(row.joint, 0.19, JOINT)] if row.joint else [])


def axis_title(score: Score, metric: str) -> str:
    """What stands at the axis of such scores. metric: what the shares are (`kinds.NAMES`)."""
    return f"{NAMES[metric]}, %" if score.measure == "share" else WORDS[score.measure]


def axis_end(scores: Sequence[Score]) -> float:
    """Where the axis of such scores ends."""
    if scores[0].measure == "share":
        return 100.0
    return 1.2 * max(*(score.value + score.standard_error for score in scores), 1e-9)
