"""How a symmetry is shown: a table for the terminal, and a drawing with groups as rows and layers as columns."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich import box
from rich.table import Table

from mergeline.symmetry.symmetry import CONSUMER, ELEMENTWISE, PRODUCER, Symmetry, UnitGroup

# role -> marker, colour, what it means
MARKS = {
    PRODUCER: ("s", "#1f6f8b", "writes the units"),
    CONSUMER: (">", "#e07a3f", "reads the units"),
    ELEMENTWISE: (".", "0.4", "scales or shifts them"),
}


def symmetry_table(symmetry: Symmetry) -> Table:
    """One row per unit group: its units, how they are nested, and the layers that write and read them."""
    order = symmetry.log10_order()
    table = Table(
        box=box.SIMPLE_HEAD, title=f"{len(symmetry.groups)} unit groups; about 10^{order:.0f} permutations are allowed"
    )
    for title in ("group", "units", "written by", "read by"):
        table.add_column(title, overflow="fold", justify="right" if title == "units" else "left")
    for group in symmetry.groups.values():
        table.add_row(group.name, units_text(group), _layers(group, PRODUCER), _layers(group, CONSUMER))
    return table


def units_text(group: UnitGroup) -> str:
    """'64', or '4 * 16' for blocks of units."""
    return str(group.size) if group.blocks == 1 else f"{group.blocks} * {group.size // group.blocks}"


def draw_symmetry(symmetry: Symmetry, path: Path) -> None:
    """Write an SVG: a mark where a layer writes, reads or scales the units of a group."""
    groups = list(symmetry.groups.values())
    layers = list(dict.fromkeys(layer_of(name) for name in symmetry.parameters))
    with mpl.rc_context({"svg.hashsalt": "mergeline", "font.size": 8, "svg.fonttype": "none"}):
        figure = Figure(figsize=(3.2 + 0.22 * len(layers), 1.8 + 0.24 * len(groups)), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        for row, group in enumerate(groups):
            axes.axhline(row, color="0.92", linewidth=0.8, zorder=0)
            for role, (marker, colour, _) in MARKS.items():
                held = {layer_of(axis.param) for axis in group.axes if role in axis.role.split("/")}
                columns = [layers.index(layer) for layer in sorted(held, key=layers.index)]
                size = 12 if role == ELEMENTWISE else 26
                axes.scatter(columns, [row] * len(columns), marker=marker, color=colour, s=size, zorder=2)
        axes.set_yticks(range(len(groups)), [f"{group.name}  ({units_text(group)})" for group in groups])
        axes.set_xticks(range(len(layers)), layers, rotation=90)
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.set_xlim(-0.6, len(layers) - 0.4)
        axes.spines[["top", "right"]].set_visible(False)
        handles = [Line2D([], [], marker=m, color=c, linestyle="", markersize=5, label=t) for m, c, t in MARKS.values()]
        figure.legend(handles=handles, loc="outside upper right", ncols=3, frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def layer_of(param: str) -> str:
    """The layer a tensor belongs to: its name without the last part."""
    return param.rpartition(".")[0] or param


def _layers(group: UnitGroup, role: str) -> str:
    """Layers that hold the units in a role, in order, without repetitions."""
    return ", ".join(dict.fromkeys(layer_of(axis.param) for axis in group.axes if role in axis.role.split("/")))
