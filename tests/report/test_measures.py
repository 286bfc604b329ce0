"""Where lower is better, what is better stands first, is called better, and passes the gates."""

from dataclasses import replace
from pathlib import Path

import pytest

from mergeline.errors import InputError
from mergeline.evaluation.relative import relative
from mergeline.evaluation.score import Score, mean_score
from mergeline.grid import Cell
from mergeline.plan import Promotion
from mergeline.plan_file import load_plan
from mergeline.promotion import Measured, judge
from mergeline.report.card import CardFacts, front_matter
from mergeline.report.chart import draw_chart
from mergeline.report.html import report_html
from mergeline.report.leaderboard import Leaderboard
from mergeline.report.leaderboard import Measured as Row
from mergeline.report.page import report_page
from mergeline.report.result import Comparison, RowScores, comparison_of, own_scores
from mergeline.report.table import header, own_table, words_of
from mergeline.report.verdict import verdict
from tests.report.findings import findings

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = ("clean-02478", "clean-13569", "half-12679", "half-03458")


@pytest.fixture
def plan(monkeypatch):
    monkeypatch.chdir(ROOT)
    return load_plan("params.yaml")


def perplexity(value, error=0.1, count=1000):
    return Score(value, error, count, "perplexity")


def row(name, value):
    tasks = dict.fromkeys(NAMES, perplexity(value))
    return RowScores(name=name, label=name, tasks=tasks, mean=perplexity(value), joint=None)


def comparison(result, average, own):
    own_rows = [row(name, own) for name in ("a-clean-02478", "a-clean-13569", "b-half-12679", "b-half-03458")]
    specialists = dict(zip(NAMES, (one.name for one in own_rows), strict=True))
    return Comparison(
        plan="words", rows=[*own_rows, row("average", average), row("merged", result)], specialists=specialists
    )


@pytest.mark.parametrize(
    ("result", "headline", "standing"),
    [
        (30.0, "Not good enough: averaging the same models scores better.", "below"),
        (15.0, "Better than averaging, but worse than its own task models, each on its own task.", "below"),
        (9.0, "Better than its own task models, each on its own task.", "above"),
    ],
)
def test_the_verdict(plan, result, headline, standing):
    found = verdict(plan, comparison(result, average=20.0, own=12.0))
    assert (found.headline, found.standing) == (headline, standing)
    assert "average" in found.above or result < 20
    beside = {one.what: one for one in found.beside}
    assert beside["average"].shown.startswith(f"{result - 20:+.3f}")
    assert beside["average"].word == ("better" if result < 20 else "worse")


def test_pages_say_what_the_numbers_are_and_nothing_of_accuracy(plan, tmp_path):
    found = comparison(15.0, average=20.0, own=12.0)
    digests = {checkpoint.name: "0" * 64 for checkpoint in plan.checkpoints}
    page = report_page(plan, found, replace(findings().facts, digests=digests), "chart.png")
    html = report_html(plan, found, findings())
    assert "reaches 15.000 ± 0.100 over the tasks." in page
    assert "4000 test tokens in all" in page
    for text in (page, html):
        assert "erplexity (lower is better)" in text
        assert "ccuracy" not in text.replace("joint accuracy", "")
    assert header(found) == ["method", *NAMES, "mean of tasks"]
    draw_chart(found, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_the_change_is_that_of_the_number_and_the_kept_share_falls_with_a_worse_one(plan):
    one = relative(perplexity(15.0, 0.3), perplexity(12.0, 0.2))
    assert one.change == pytest.approx(3.0)
    assert one.normalised == pytest.approx(0.8)
    assert one.normalised_error == pytest.approx((0.2**2 + (0.8 * 0.3) ** 2) ** 0.5 / 15)
    assert "| +3.000 ± 0.141 | 80.0 ± " in own_table(comparison(15.0, average=20.0, own=12.0))
    loss = relative(Score(1.0, 0.1, 10, "loss"), Score(-2.0, 0.1, 10, "loss"))
    assert (loss.change, loss.normalised) == (3.0, None)


def test_the_better_of_a_models_two_rows_is_its_own_score():
    rows = [row("a-clean-02478", 12.0), row("a-clean-02478-reset", 11.0)]
    assert own_scores(rows, {"clean-02478": "a-clean-02478"})["clean-02478"].value == 11.0


def test_the_lowest_is_ranked_first(plan):
    values = {"a": 30.0, "b": 10.0, "c": 20.0}
    measured = [Row(cell=Cell(name=name, plan=plan), scores=row("merged", value)) for name, value in values.items()]
    board = Leaderboard.of(plan, measured)
    assert [one.cell for one in board.rows] == ["b", "c", "a"]
    assert board.table()[0]["mean"] == 10.0
    assert board.lines()[0] == "  1  b  10.000 ± 0.100"
    assert board.metrics()["best"]["mean"] == 10.0
    assert board.behind(board.rows[2]).value == 20.0
    with pytest.raises(InputError, match="there is no joint accuracy"):
        row("merged", 1.0).by("joint")


@pytest.mark.parametrize(("value", "passed", "words"), [(9.0, True, "3.000 better than"), (15.0, False, "3.000 worse")])
def test_a_lower_perplexity_becomes_the_champion(value, passed, words):
    candidate, champion = (Measured(dict.fromkeys(NAMES, one), one, None, {}) for one in map(perplexity, (value, 12.0)))
    (found,) = judge(Promotion(champion="better"), candidate, champion)
    assert found.passed is passed
    assert words in found.sentence
    (joint,) = judge(Promotion(champion="better", score="joint"), candidate, champion)
    assert not joint.passed and "there is no joint accuracy over these tasks" in joint.sentence


def test_numbers_of_several_kinds_have_no_mean():
    with pytest.raises(InputError, match="tasks measured by perplexity and share have no common mean"):
        mean_score([perplexity(3.0), Score(0.5, 0.1, 10)])


def test_shares_are_called_by_the_metric_of_the_tasks(plan):
    shares = dict.fromkeys(NAMES, Score(0.5, 0.01, 100))
    merged = RowScores(name="merged", label="merged", tasks=shares, mean=Score(0.5, 0.005, 400), joint=None)

    def made(*metrics):
        tasks = [task.model_copy(update={"metric": m}) for task, m in zip(plan.tasks, metrics, strict=True)]
        other = plan.model_copy(update={"tasks": tasks})
        return other, comparison_of(other, [merged])

    same, found = made(*["f1"] * 4)
    html = report_html(same, found, findings())
    assert words_of(found) == "F1 in %" and "F1 in % ± its standard error" in html and ">accuracy" not in html
    assert Comparison.model_validate_json(found.model_dump_json()) == found
    facts = CardFacts({}, {}, [], "pytorch", "", {})
    results = front_matter(same, found, facts)["model-index"][0]["results"]
    assert {one["metrics"][0]["type"] for one in results} == {"f1"}
    mixed, found = made("f1", "accuracy", "accuracy", "accuracy")
    assert words_of(found) == "score in %"
    results = front_matter(mixed, found, facts)["model-index"][0]["results"]
    assert [one["metrics"][0]["type"] for one in results] == ["f1", "accuracy", "accuracy", "accuracy", "mean"]
    plain = made(*["accuracy"] * 4)[1]
    assert words_of(plain) == "accuracy in %" and "metric" not in plain.model_dump(mode="json")


def test_a_leaderboard_says_what_its_numbers_are(plan):
    cell = Cell(name="one", plan=plan)
    assert Leaderboard.of(plan, [Row(cell=cell, scores=row("merged", 12.0))]).words == "perplexity (lower is better)"
    shares = RowScores(name="merged", label="", tasks={}, mean=Score(0.5, 0.01, 9), joint=None)
    assert Leaderboard.of(plan, [Row(cell=cell, scores=shares)]).words == "accuracy in %"


def test_nothing_is_said_of_normalisation_where_nothing_calibrates(plan):
    found, bare = comparison(15.0, average=20.0, own=12.0), plan.model_copy(update={"calibration": None})
    facts = replace(findings().facts, digests={checkpoint.name: "0" * 64 for checkpoint in plan.checkpoints})
    for which, said in ((plan, True), (bare, False)):
        for text in (report_page(which, found, facts, "chart.png"), report_html(which, found, findings())):
            assert ("statistics measured on" in " ".join(text.split())) is said
