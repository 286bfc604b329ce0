"""The pictures of the HTML report: SVG in the colours of the page, small PNG heat maps. Same data, same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mergeline.balancing.winners import BINS, Winners
from mergeline.report.chart import axis_end, axis_title
from mergeline.report.result import Comparison

INK = "#010203"  # becomes the text colour of the page, light or dark
COLOURS = ("#1f7f9f", "#d9703a", "#8a76c9", "#4f9a4a", "#c2528b", "#8a8a2a")
WIDTH = 4.6  # inches: as wide as a phone, where it is shown without shrinking much


@dataclass(frozen=True)
class Picture:
    """A picture of a report: title and caption for all, alt for those who do not see it. data: an SVG or PNG file."""

    title: str
    alt: str
    data: bytes
    caption: str = ""


def task_bars(comparison: Comparison) -> Picture:
    """Per task the merged model beside the model that was trained for it (as the table has it), the ensemble and the
    best average."""
    rows = {row.name: row for row in comparison.rows}
    averages = [rows[name] for name in ("average", "aligned-average") if name in rows]
    best = max(averages, key=lambda row: row.mean.goodness, default=None)
    series = {"merged": comparison.result.tasks}
    series |= {"own task model": own} if (own := comparison.own) else {}
    series |= {row.label: row.tasks for row in (rows.get("ensemble"), best) if row is not None}
    tasks = list(comparison.result.tasks)
    step = 0.8 / len(series)
    with _drawing(0.9 + 0.2 * len(tasks) * (len(series) + 0.8)) as (figure, axes):
        for place, (label, scores) in enumerate(series.items()):
            shown = [(at, scores[name]) for at, name in enumerate(tasks) if name in scores]
            axes.barh(
                [at - 0.4 + step * (place + 0.5) for at, _ in shown],
                [score.scale * score.value for _, score in shown],
                height=0.9 * step,
                xerr=[score.scale * score.standard_error for _, score in shown],
                color=COLOURS[place % len(COLOURS)],
                error_kw={"ecolor": INK, "elinewidth": 0.8},
                label=_plain(label),
            )
        axes.set_yticks(range(len(tasks)), [_plain(name) for name in tasks])
        axes.set_ylim(len(tasks) - 0.5, -0.5)
        every = [scores[name] for scores in series.values() for name in tasks if name in scores]
        axes.set_xlim(min(0.0, *(score.scale * score.value for score in every)), axis_end(every))
        axes.set_xlabel(axis_title(comparison.result.mean, comparison.metric))
        _legend(figure, len(series))
        data = _svg(figure)
    measured = axis_title(comparison.result.mean, comparison.metric).partition(",")[0]
    alt = f"Bars: {measured} per task of {', '.join(series)}; the numbers are in the table."
    return Picture("Task by task", alt, data, "Lines: one standard error of the test examples.")


def objective_curve(objective: Sequence[float]) -> Picture:
    """Mean matched similarity after each sweep."""
    sweeps = range(1, len(objective) + 1)
    with _drawing(2.3) as (figure, axes):
        axes.plot(sweeps, objective, color=COLOURS[0], marker="o", markersize=3.5)
        axes.set_xlabel("sweep")
        axes.set_ylabel("mean matched similarity")
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        data = _svg(figure)
    alt = f"Line: mean matched similarity from {objective[0]:.4f} after sweep 1; the best is {max(objective):.4f}."
    caption = (
        "The mean over all groups of units. The best sweep is kept; matching ends where it does not rise any more."
    )
    return Picture("What matching maximises", alt, data, caption)


def coefficient_histogram(winners: Winners, models: Sequence[str]) -> Picture:
    """How the kept coefficients of each task model are distributed."""
    edges = np.linspace(0, 1, BINS + 1)
    with _drawing(2.9) as (figure, axes):
        for place, (name, counts) in enumerate(zip(models, winners.histogram, strict=True)):
            style = ("-", "--", ":")[place // len(COLOURS) % 3]
            colour = COLOURS[place % len(COLOURS)]
            axes.stairs(
                np.maximum(counts, 0.5), edges, baseline=None, color=colour, ls=style, lw=1.4, label=_plain(name)
            )
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)  # an empty bin lies below
        axes.set_xlim(0, 1)
        axes.set_xlabel("coefficient")
        axes.set_ylabel("parameters")
        _legend(figure, len(models))
        data = _svg(figure)
    alt = f"Histogram: kept coefficients between 0 and 1 of {', '.join(models)}; the sums are in the table."
    return Picture(
        "Strength of what is kept", alt, data, "Entries that were dropped have the coefficient 0; not shown."
    )


def heat_map(cells: Sequence[Sequence[float]]) -> bytes:
    """PNG, one pixel per cell: dark is 0 and below, bright is 1."""
    buffer = io.BytesIO()
    settings: dict[str, Any] = {"metadata": {"Software": None}}  # no program version inside
    mpl.image.imsave(buffer, np.asarray(cells), cmap="viridis", vmin=0, vmax=1, format="png", **settings)
    return buffer.getvalue()


@contextmanager
def _drawing(height: float) -> Any:
    """A figure and its axes, drawn with our settings whatever the user's are."""
    style = {"svg.hashsalt": "mergeline", "svg.fonttype": "path", "font.size": 9, "font.family": "DejaVu Sans"}
    colours = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK)
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(style | colours)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        yield figure, axes


def _legend(figure: Figure, entries: int) -> None:
    figure.legend(loc="outside upper left", ncols=2 if entries > 1 else 1, frameon=False, fontsize=8)


def _plain(text: str) -> str:
    """A name as it is: a dollar sign would begin mathematics, a leading underscore hides it from the legend."""
    text = text.replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text


def _svg(figure: Figure) -> bytes:
    """SVG without date and program, its ink that of the page around it."""
    buffer = io.StringIO()
    nothing: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)
    return text.replace(INK, "currentColor").encode()
