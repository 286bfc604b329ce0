"""The ranking of a comparison: order, choice, settings as columns, numbers for DVC, the picture."""

import pytest

from mergeline.evaluation.score import Score
from mergeline.grid import Cell
from mergeline.plan import Plan
from mergeline.report.chart import draw_leaderboard
from mergeline.report.leaderboard import Leaderboard, Measured
from mergeline.report.result import RowScores

BASE = Plan(
    name="plan",
    checkpoints=[{"name": name, "uri": name} for name in "ab"],
    align={"space": "dual"},
    compare={"metric": "joint", "choose": {"split": "validation"}},
)


def scores(mean, joint, task="task", **outside):
    def score(value):
        return Score(value, 0.0123, 100)

    return RowScores(
        name="merged",
        label="",
        tasks={task: score(mean)},
        mean=score(mean),
        joint=score(joint),
        outside={name: score(value) for name, value in outside.items()},
    )


def cell(merge, **sections):
    return BASE.model_validate(BASE.model_dump(exclude_unset=True) | {"merge": merge} | sections)


def board(plan=BASE):
    found = {
        "ties, strong": (cell({"method": "ties", "scale": 2.0}), scores(0.5, 0.4), scores(0.1, 0.3)),
        "ties": (cell({"method": "ties", "scale": 1.0}), scores(0.6, 0.3), scores(0.1, 0.31)),
        "average": (cell({"method": "average"}, align=None), scores(0.7, 0.35), scores(0.1, 0.1)),
    }
    measured = [
        Measured(cell=Cell(name=name, plan=of), scores=scores, tried=tried if plan.compare.choose else None)
        for name, (of, scores, tried) in found.items()
    ]
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


def repeated(choose=True):
    """Two settings of TIES and the average, in two repeats of pairs and one of triples, where other settings win."""
    found = {  # joint accuracy in each repeat, and what data of its own says of it
        "ties, strong": (cell({"method": "ties", "scale": 2.0}), (0.5, 0.7, 0.3), (0.9, 0.8, 0.1)),
        "ties": (cell({"method": "ties", "scale": 1.0}), (0.4, 0.4, 0.7), (0.1, 0.2, 0.6)),
        "average": (cell({"method": "average"}, align=None), (0.2, 0.4, 0.3), (0.1, 0.1, 0.1)),
    }
    plan = BASE if choose else BASE.model_copy(update={"compare": BASE.compare.model_copy(update={"choose": None})})
    return Leaderboard.of(
        plan,
        [
            Measured(
                cell=Cell(name=name, plan=of, repeat=repeat, group=group),
                scores=scores(0.1 * place, joint, task=f"own-{repeat}", unseen=joint / 2, strange=joint / 4),
                tried=scores(0.0, tried) if choose else None,
            )
            for name, (of, joints, choices) in found.items()
            for place, (repeat, group, joint, tried) in enumerate(
                zip(("pair, 1", "pair, 2", "triple"), ("pair", "pair", "triple"), joints, choices, strict=True)
            )
        ],
    )


def test_cells_are_ranked_by_their_mean_over_repeats_with_the_error_of_their_spread():
    ranked = repeated(choose=False)
    assert [row.cell for row in ranked.rows] == ["ties, strong", "ties", "average"]
    first = ranked.rows[0].scores
    assert first.joint.value == pytest.approx(0.5)
    assert first.joint.standard_error == pytest.approx(0.2 / 3**0.5)  # the standard deviation of 0.5, 0.7, 0.3 is 0.2
    assert first.joint.count == 300
    assert first.tasks == {}, "no task is in all repeats"
    assert {task: score.value for task, score in first.outside.items()} == pytest.approx(
        {"unseen": 0.25, "strange": 0.125}
    )


def test_a_difference_is_taken_in_each_repeat():
    ranked = repeated(choose=False)
    assert ranked.behind(ranked.rows[0]) == Score(0.0, 0.0, 300)
    average = ranked.behind(ranked.rows[2])  # 0.3, 0.3, 0.0 behind
    assert (average.value, average.standard_error) == (pytest.approx(0.2), pytest.approx(0.1))


def test_a_method_is_worth_what_was_chosen_of_it_in_each_repeat():
    ranked = repeated()
    first, *others = ranked.rows
    assert first.cell == "ties, as chosen in each repeat"
    assert [one.scores.joint.value for one in first.repeats] == [0.5, 0.7, 0.7]
    table = {row["cell"]: row for row in ranked.table()}
    assert {name: row["chosen"] for name, row in table.items()} == {
        "ties, as chosen in each repeat": "yes",
        "ties, strong": "2 of 3",
        "ties": "1 of 3",
        "average": "yes",
    }
    assert [row.chosen for row in others] == [row.cell == "average" for row in others]
    assert table[first.cell]["merge.method"] == "ties" and table[first.cell]["merge.scale"] == ""
    assert table[first.cell]["joint on validation"] == pytest.approx(100 * (0.9 + 0.8 + 0.6) / 3, abs=0.01)


def test_the_table_has_columns_for_the_groups_of_repeats_and_a_table_of_its_own_for_these():
    ranked = repeated()
    strong = next(row for row in ranked.table() if row["cell"] == "ties, strong")
    assert (strong["pair"], strong["pair ±"]) == (60.0, 10.0)
    assert (strong["triple"], strong["triple ±"]) == (30.0, 1.23), "of one repeat, the error of its examples"
    assert (strong["behind the first"], strong["behind the first ±"]) == (13.33, 13.33)
    assert strong["outside"] == pytest.approx(100 * 0.5 * 0.375, abs=0.01)
    repeats = ranked.table_of_repeats()
    assert [row["repeat"] for row in repeats] == ["pair, 1"] * 4 + ["pair, 2"] * 4 + ["triple"] * 4
    assert len({tuple(row) for row in repeats}) == 1, "every row has every column"
    (row,) = [row for row in repeats if (row["cell"], row["repeat"]) == ("ties", "triple")]
    assert (row["joint"], row["own-triple"], row["own-pair, 1"], row["outside unseen"]) == (70.0, 20.0, "", 35.0)
    assert row["chosen"] == "yes"
    assert board().table_of_repeats() == []


def test_metrics_have_every_repeat():
    metrics = repeated().metrics()
    assert metrics["cells"]["ties"]["joint"] == pytest.approx(0.5)
    assert metrics["repeats"]["ties"]["triple"]["joint"] == 0.7
    assert metrics["repeats"]["ties"]["triple"]["outside"] == {"unseen": 0.35, "strange": 0.175}
    assert "repeats" not in board().metrics()


def test_a_search_is_a_method_of_its_own():
    searched = cell({"method": "pcb"}, search={"trials": 7})
    plain = cell({"method": "pcb", "scale": 1.0})
    ranked = Leaderboard.of(
        BASE,
        [
            Measured(cell=Cell(name=name, plan=plan), scores=scores(0.1, 0.1), tried=scores(0.1, tried))
            for name, plan, tried in (("plain", plain, 0.1), ("searched", searched, 0.9))
        ],
    )
    assert {row.cell: (row.method, row.chosen) for row in ranked.rows} == {
        "plain": ("pcb", True),
        "searched": ("pcb, 7 trials", True),
    }


def calibrated_board(**of_second):
    """A plain cell, and one of two repeats with a calibration that leaves nothing to the merge."""
    plan = BASE.model_copy(update={"compare": BASE.compare.model_copy(update={"choose": None})})
    plain, calibrated = cell({"method": "average"}), cell({"method": "average"}, calibrate={})

    def beside(joint, **more):
        found = {"uncalibrated": joint - 0.2, "control-first": joint + 0.1} | more
        return [scores(0.1, at).model_copy(update={"name": name, "label": name}) for name, at in found.items()]

    return Leaderboard.of(
        plan,
        [
            *(Measured(cell=Cell(name="plain", plan=plain, repeat=of), scores=scores(0.1, 0.9)) for of in "12"),
            *(
                Measured(cell=Cell(name="near", plan=calibrated, repeat=of), scores=scores(0.1, at), beside=more)
                for of, at, more in (("1", 0.4, beside(0.4)), ("2", 0.6, beside(0.6, **of_second)))
            ),
        ],
    )


def test_a_calibrated_cell_has_what_it_was_before_and_its_controls_behind_it():
    ranked = calibrated_board(control_random=0.3)
    assert [(row.cell, row.scores.joint.value) for row in ranked.rows] == [
        ("plain", 0.9),
        ("near", 0.5),
        ("near, not calibrated", pytest.approx(0.3)),
        ("near, control-first", pytest.approx(0.6)),  # what is not in every repeat has no mean
    ]
    assert [row["rank"] for row in ranked.table()] == [1, 2, "", ""]
    lines = [line[:19].rstrip() for line in ranked.lines()[:4]]
    assert lines == ["  1  plain", "  2  near", "       not calibrat", "       control-firs"]
    assert ranked.facts == {"cells": 2, "best": "plain"}
    assert ranked.metrics()["cells"]["near, control-first"]["joint"] == pytest.approx(0.6)


def test_a_control_of_other_models_in_every_repeat_is_called_by_its_kind():
    plan, measured = cell({"method": "average"}, calibrate={}), []
    for repeat, model in (("1", "a"), ("2", "c")):
        beside = [scores(0.1, 0.9).model_copy(update={"name": "control-first", "label": f"control: {model} alone"})]
        of = Cell(name="near", plan=plan, repeat=repeat)
        measured.append(Measured(cell=of, scores=scores(0.1, 0.1), tried=scores(0.1, 0.1), beside=beside))
    assert Leaderboard.of(BASE, measured).rows[1].cell == "near, control-first"
    assert Leaderboard.of(BASE, measured[:1]).rows[1].cell == "near, control: a alone"


def test_a_calibration_is_a_setting_and_a_method_of_its_own():
    plain, near, before, control = calibrated_board().rows
    assert {row.method for row in (plain, near)} == {"average", "average, calibrated"}
    settings = [[row.settings[f"calibrate.{field}"] for field in ("centre", "last_layer", "layers")]
                for row in (plain, near, before, control)]  # fmt: skip
    assert settings == [["", "", ""], ["True", "mean", "True"], ["", "", ""], ["True", "mean", "True"]]


def test_data_of_another_domain_stand_in_the_settings_in_a_few_words():
    plan = cell({"method": "average"}, calibrate={"control_data": {"dataset": "fashion", "where": {"domain": "half"}}})
    (row,) = Leaderboard.of(plan, [Measured(cell=Cell(name="c", plan=plan), scores=scores(0.1, 0.1))]).rows
    assert row.settings["calibrate.control_data"] == "fashion/calibration half"


def test_only_cells_are_chosen():
    plan = cell({"method": "average"}, calibrate={})
    beside = [scores(0.1, 0.9).model_copy(update={"name": "control-first", "label": "control"})]
    measured = [
        Measured(cell=Cell(name="c", plan=plan), scores=scores(0.1, 0.1), tried=scores(0.1, 0.1), beside=beside)
    ]
    table = Leaderboard.of(BASE, measured).table()
    assert [row["chosen"] for row in table] == ["yes", ""]
    assert len({tuple(row) for row in table}) == 1, "every row has every column"


def test_the_picture_is_the_same_for_the_same_numbers(tmp_path):
    for name in ("first.png", "second.png"):
        draw_leaderboard(board(), tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    assert (tmp_path / "first.png").read_bytes().startswith(b"\x89PNG")
