"""The ranking of a comparison: order, choice, settings as columns, numbers for DVC, the picture."""

from mergeline.evaluation.score import Score
from mergeline.plan import Plan
from mergeline.report.chart import draw_leaderboard
from mergeline.report.leaderboard import Leaderboard
from mergeline.report.result import RowScores

BASE = Plan(
    name="plan",
    checkpoints=[{"name": name, "uri": name} for name in "ab"],
    align={"space": "dual"},
    compare={"metric": "joint", "choose": {"split": "validation"}},
)


def scores(mean, joint):
    def score(value):
        return Score(value, 0.0123, 100)

    return RowScores(name="merged", label="", tasks={"task": score(mean)}, mean=score(mean), joint=score(joint))


def cell(merge, **sections):
    return BASE.model_validate(BASE.model_dump(exclude_unset=True) | {"merge": merge} | sections)


def board(plan=BASE):
    measured = {
        "ties, strong": (cell({"method": "ties", "scale": 2.0}), scores(0.5, 0.4), scores(0.1, 0.3)),
        "ties": (cell({"method": "ties", "scale": 1.0}), scores(0.6, 0.3), scores(0.1, 0.31)),
        "average": (cell({"method": "average"}, align=None), scores(0.7, 0.35), scores(0.1, 0.1)),
    }
    if plan.compare.choose is None:
        measured = {name: (of, found, None) for name, (of, found, _) in measured.items()}
    return Leaderboard.of(plan, measured)


def test_cells_are_ranked_by_the_metric_and_chosen_by_other_data():
    ranked = board()
    assert [row.cell for row in ranked.rows] == ["ties, strong", "average", "ties"]
    assert [row.cell for row in ranked.rows if row.chosen] == ["average", "ties"]
    by_mean = board(BASE.model_copy(update={"compare": BASE.compare.model_copy(update={"metric": "mean"})}))
    assert [row.cell for row in by_mean.rows] == ["average", "ties", "ties, strong"]


def test_nothing_is_chosen_without_data_that_chooses():
    ranked = board(BASE.model_copy(update={"compare": BASE.compare.model_copy(update={"choose": None})}))
    assert not any(row.chosen for row in ranked.rows)
    assert "chosen" not in ranked.table()[0]


def test_the_table_has_standard_errors_and_a_column_per_setting():
    first, second, third = board().table()
    assert list(first.items())[:8] == [
        *(("rank", 1), ("cell", "ties, strong"), ("mean", 50.0), ("mean ±", 1.23), ("joint", 40.0), ("joint ±", 1.23)),
        *(("task", 50.0), ("task ±", 1.23)),
    ]
    assert [row["joint on validation"] for row in (first, second, third)] == [30.0, 10.0, 31.0]
    assert [row["chosen"] for row in (first, second, third)] == ["", "yes", "yes"]
    assert [row["merge.method"] for row in (first, second, third)] == ["ties", "average", "ties"]
    assert [row["merge.scale"] for row in (first, second, third)] == [2.0, "", 1.0]
    assert [row["align.space"] for row in (first, second, third)] == ["dual", "", "dual"]
    assert len({tuple(row) for row in (first, second, third)}) == 1, "every row has every column"


def test_metrics_are_shares_by_cell():
    metrics = board().metrics()
    assert metrics["best"] == metrics["cells"]["ties, strong"]
    assert metrics["cells"]["ties"]["joint"] == 0.3
    assert metrics["cells"]["ties"]["joint_standard_error"] == 0.0123


def test_the_picture_is_the_same_for_the_same_numbers(tmp_path):
    for name in ("first.png", "second.png"):
        draw_leaderboard(board(), tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    assert (tmp_path / "first.png").read_bytes().startswith(b"\x89PNG")
