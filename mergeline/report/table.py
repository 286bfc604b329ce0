"""The result table: one row per model, one column per task, then their mean and the joint accuracy, in percent."""

from __future__ import annotations

from rich import box
from rich.table import Table

from mergeline.comparison import RESULT
from mergeline.report.result import Comparison, RowScores


def header(comparison: Comparison) -> list[str]:
    """Column titles."""
    return ["method", *comparison.result.tasks, "mean of tasks", "joint"]


def cells(row: RowScores) -> list[str]:
    """One row as text, in percent with standard errors."""
    return [row.label, *(str(score) for score in row.tasks.values()), str(row.mean), str(row.joint)]


def terminal_table(comparison: Comparison) -> Table:
    """The table for a terminal; the result stands last, in bold. Scores stay whole where it is narrow, names wrap."""
    table = Table(box=box.SIMPLE_HEAD, title=f"{comparison.plan}: accuracy in % ± standard error", padding=(0, 0, 0, 1))
    table.add_column("method", overflow="fold")
    for title in header(comparison)[1:]:
        table.add_column(title.replace("-", "-\n").replace(" of ", "\nof "), justify="right", no_wrap=True, min_width=8)
    for row in comparison.rows:
        label, *scores = cells(row)
        narrow = [score.replace(" ", "") for score in scores]
        table.add_row(label, *narrow, style="bold" if row.name == RESULT else None)
    return table


def markdown_table(comparison: Comparison) -> str:
    """The table for a Markdown page."""
    lines = [header(comparison), ["---", *(["--:"] * (len(header(comparison)) - 1))]]
    for row in comparison.rows:
        texts = cells(row)
        lines.append([f"**{text}**" for text in texts] if row.name == RESULT else texts)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
