"""The result table: one row per model, one column per task, then their mean and the joint accuracy."""

from __future__ import annotations

from rich import box
from rich.table import Table

from mergeline.comparison import RESULT
from mergeline.evaluation.kinds import WORDS, words_for
from mergeline.evaluation.relative import Relative
from mergeline.evaluation.score import Score
from mergeline.report.result import Comparison, RowScores


def header(comparison: Comparison) -> list[str]:
    """Column titles."""
    measure, outside = comparison.result.mean.measure, []
    for task, score in comparison.result.outside.items():
        outside.append(f"{task} (outside{'' if score.measure == measure else f', {WORDS[score.measure]}'})")
    joint = ["joint"] if comparison.result.joint else []
    return ["method", *comparison.result.tasks, "mean of tasks", *joint, *outside]


def cells(row: RowScores) -> list[str]:
    """One row as text, with standard errors; shares in percent."""
    scores = (*row.tasks.values(), *row.summary.values(), *row.outside.values())
    return [row.label, *map(str, scores)]


def words_of(comparison: Comparison) -> str:
    """What the numbers of the table are, in words."""
    return words_for(comparison.metric, comparison.result.mean.measure)


def terminal_table(comparison: Comparison) -> Table:
    """The table for a terminal; the result stands last, in bold. Scores stay whole where it is narrow, names wrap."""
    title = f"{comparison.plan}: {words_of(comparison)} ± standard error"
    table = Table(box=box.SIMPLE_HEAD, title=title, padding=(0, 0, 0, 1))
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
    lines = [header(comparison)]
    for row in comparison.rows:
        texts = cells(row)
        lines.append([f"**{text}**" for text in texts] if row.name == RESULT else texts)
    return _markdown(lines)


def own_table(comparison: Comparison) -> str:
    """The result beside each task's own model, in Markdown; empty where no own model was measured."""
    lines = own_lines(comparison)
    if not lines:
        return ""
    *others, mean = lines
    return _markdown([*others, [f"**{text}**" if text else "" for text in mean]])


def own_lines(comparison: Comparison) -> list[list[str]]:
    """The same as texts: titles, a line per task, their mean; empty where no own model was measured."""
    found = comparison.against_own.get(RESULT)
    if found is None:
        return []
    lines = [["task", comparison.result.label, "own model", "change", "normalised"]]
    for task, one in found.tasks.items():
        score = comparison.result.tasks[task]
        lines.append([task, str(score), str(comparison.own[task]), *_relative(one, score)])
    return [*lines, ["mean", "", "", *_relative(found.mean, comparison.result.mean)]]


def _relative(found: Relative, score: Score) -> list[str]:
    """The change (of shares in percentage points), and the share of the own model's score in percent."""
    scale, digits = score.scale, score.digits
    change = f"{scale * found.change:+.{digits}f} ± {scale * found.change_error:.{digits}f}"
    if found.normalised is None or found.normalised_error is None:
        return [change, "none"]
    return [change, f"{100 * found.normalised:.1f} ± {100 * found.normalised_error:.1f}"]


def _markdown(lines: list[list[str]]) -> str:
    """A table whose first line is its head; numbers stand at the right."""
    rule = ["---", *(["--:"] * (len(lines[0]) - 1))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])
