"""Pictures of a loss landscape: contours on the plane, losses along the lines. Same data, same bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from mergeline.comparison import RESULT
from mergeline.landscape.landscape import MEAN, Curve, Line, LossLandscape
from mergeline.report.figures import COLOURS, WIDTH, Picture

LEVELS = 16
"""Contours, in equal steps of the loss's logarithm."""
LEAST = 1e-3
"""Losses below it have the colour of this one."""
STATES = {"before": "before alignment", "after": "after alignment", "shared": "in one unit order"}
_LOOKS = {"before": (COLOURS[1], "--"), "after": (COLOURS[0], "-"), "shared": (COLOURS[0], "-")}


def draw_plane(landscape: LossLandscape) -> bytes:
    """PNG: the loss on the plane, mean over the tasks first, then task by task, in one scale of colours."""
    plane, losses = landscape.plane, landscape.losses
    shown = [task for task in losses if task != MEAN or len(losses) > 2]
    low = max(LEAST, min(np.min(losses[task]) for task in shown))
    high = max(1.01 * low, *(float(np.max(losses[task])) for task in shown))
    levels = np.geomspace(low, high, LEVELS)
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    ratio = (plane.ys[-1] - plane.ys[0]) / (plane.xs[-1] - plane.xs[0])
    with _drawing(WIDTH, 0.9 + rows * (0.42 + min(1.2, ratio) * 0.62 * WIDTH / columns)) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, task in zip(panels, shown, strict=False):
            values = np.clip(np.asarray(losses[task]), low, high)
            drawn = panel.contourf(plane.xs, plane.ys, values, levels=levels, norm=LogNorm(low, high), cmap="viridis")
            panel.contour(plane.xs, plane.ys, values, levels=levels, colors="white", linewidths=0.3, alpha=0.6)
            marks = _mark_models(panel, landscape)
            panel.set_aspect("equal")
            panel.set_title(task, loc="left", fontsize=8, fontweight="bold" if task == MEAN else "normal")
            panel.tick_params(labelsize=7)
            panel.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
            panel.yaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
        for panel in panels[len(shown) :]:
            panel.set_visible(False)
        bar = figure.colorbar(drawn, ax=panels[: len(shown)].tolist(), ticks=levels[::3], format="%.2g", shrink=0.8)
        bar.set_label("cross-entropy")
        bar.ax.minorticks_off()
        bar.ax.tick_params(labelsize=7)
        figure.legend(*marks, loc="outside lower left", ncols=2, frameon=False, fontsize=7)
        return _png(figure)


def _mark_models(panel: Any, landscape: LossLandscape) -> tuple[list[Any], list[str]]:
    """Where the models lie, with what a legend says of each: those off the plane are drawn hollow."""
    handles, labels = [], []
    shapes = iter("osDPX")
    for model in landscape.plane.models:
        if model.name == RESULT:
            shape, label = "*", "merged model"
        elif model.name in landscape.plane.anchors:
            shape, label = next(shapes), f"model {model.name}"
        else:
            continue
        size = 110 if shape == "*" else 35
        handles.append(panel.scatter([model.x], [model.y], s=size, marker=shape, color="white", edgecolors="black"))
        labels.append(label)
    others = [model for model in landscape.plane.models if model.name not in (RESULT, *landscape.plane.anchors)]
    if others:
        places = [model.x for model in others], [model.y for model in others]
        handles.append(panel.scatter(*places, s=18, marker="o", color="0.55", edgecolors="white"))
        labels.append("other task models (nearest point)")
    limits = landscape.plane.xs, landscape.plane.ys
    panel.set_xlim(limits[0][0], limits[0][-1])
    panel.set_ylim(limits[1][0], limits[1][-1])
    return handles, labels


def draw_lines(landscape: LossLandscape) -> bytes:
    """PNG: the loss along every line, mean over the tasks in bold, and the straight line that a barrier rises above."""
    count = len(landscape.lines)
    with _drawing(WIDTH, 0.2 + 2.5 * count) as figure:
        for panel, line in zip(figure.subplots(count, 1, squeeze=False).ravel(), landscape.lines, strict=True):
            for curve in line.curves:
                _draw_curve(panel, line, curve)
            panel.set_xlim(0, 1)
            panel.set_ylim(bottom=0)
            panel.set_xticks([0, 0.25, 0.5, 0.75, 1], [line.start, "", "middle", "", line.end])
            for label, side in zip(panel.get_xticklabels()[::4], ("left", "right"), strict=True):
                label.set_horizontalalignment(side)
            panel.set_ylabel("cross-entropy")
            panel.spines[["top", "right"]].set_visible(False)
            panel.legend(frameon=False, fontsize=8)
        return _png(figure)


def _draw_curve(panel: Any, line: Line, curve: Curve) -> None:
    colour, style = _LOOKS[curve.state]
    for task, losses in curve.losses.items():
        if task != MEAN and len(curve.losses) > 2:
            panel.plot(line.shares, losses, color=colour, linestyle=style, linewidth=0.7, alpha=0.45)
    mean = curve.losses[MEAN]
    label = f"{STATES[curve.state]}: barrier {curve.barriers[MEAN].height:.2f}"
    panel.plot(line.shares, mean, color=colour, linestyle=style, linewidth=2, label=label)
    panel.plot([0, 1], [mean[0], mean[-1]], color=colour, linestyle=":", linewidth=1)


def pictures_of(landscape: LossLandscape, drawn: Mapping[str, bytes]) -> list[Picture]:
    """What was drawn, for the report: "plane" and "lines", with titles, alternative texts and captions."""
    found = []
    if "plane" in drawn:
        names = ", ".join(landscape.plane.anchors)
        at = "; ".join(f"{name} {losses[MEAN]:.2f}" for name, losses in landscape.models.items())
        alt = f"Contours of the loss on the plane through {names}. Mean loss over the tasks: {at}."
        found.append(Picture("Loss on the plane through the models", alt, drawn["plane"], _plane_caption(landscape)))
    if "lines" in drawn:
        heights = " ".join(_sentence(line) for line in landscape.lines)
        alt = f"Curves of the loss along lines between models. {heights}"
        caption = (
            f"Bold: mean over the tasks; pale: each task. A barrier is the height above the dotted line. {heights}"
        )
        found.append(Picture("Loss between models", alt, drawn["lines"], f"{caption} {_data(landscape)}"))
    return found


def landscape_section(landscape: LossLandscape, pictures: Mapping[str, str]) -> str:
    """The Markdown section of report.md: the pictures and the table of barriers. pictures: alternative text -> file."""
    measured = any(curve.accuracies for line in landscape.lines for curve in line.curves)
    columns = ["line", "state", "barrier of the loss", "at", "loss at the ends"] + [
        "drop of accuracy, points"
    ] * measured
    lines = [f"| {' | '.join(columns)} |", f"| --- | --- |{' ---: |' * (len(columns) - 2)}"]
    for line in landscape.lines:
        for curve in line.curves:
            found, ends = curve.barriers[MEAN], curve.losses[MEAN]
            drop = [f"{100 * curve.accuracy_drops[MEAN].height:.1f}"] if measured else []
            numbers = [f"{found.height:.3f}", f"{found.at:.2f}", f"{ends[0]:.3f}, {ends[-1]:.3f}", *drop]
            lines.append(f"| {' | '.join([line.name, STATES[curve.state], *numbers])} |")
    shown = [f"![{alt}]({file})" for alt, file in pictures.items()]
    problem = [f"No plane: {landscape.plane.problem}."] if landscape.plane.problem else []
    reading = "Mean over the tasks; *at*: the share of the second model."
    return "\n\n".join(["## Loss between models", *shown, *problem, "\n".join(lines), f"{reading} {_data(landscape)}"])


def _plane_caption(landscape: LossLandscape) -> str:
    others = [model for model in landscape.plane.models if model.off > 0 and model.name not in landscape.plane.anchors]
    farthest = max(others, key=lambda model: model.off, default=None)
    off = (
        f" {farthest.name} lies {farthest.off:.2f} beside the plane, so its loss is not what is drawn there."
        if farthest and farthest.name != RESULT
        else ""
    )
    return f"Axes: distance between all parameters.{off} {_data(landscape)}"


def _data(landscape: LossLandscape) -> str:
    same = "which also measures the result" if landscape.of_result else "which does not measure the result"
    anew = "; normalisation statistics are measured anew at every point, the models themselves included"
    return f"Loss on the split {landscape.split}, {same}{anew if landscape.reset else ''}."


def _sentence(line: Line) -> str:
    heights = [f"{curve.barriers[MEAN].height:.2f} {STATES[curve.state]}" for curve in line.curves]
    return f"{line.start} to {line.end}: barrier {', '.join(heights)}."


@contextmanager
def _drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure, drawn with our settings whatever the user's are; a dollar sign in a name is one."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({"font.size": 9, "font.family": "DejaVu Sans", "text.parse_math": False})
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # no program version inside
    return buffer.getvalue()
