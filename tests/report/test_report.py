"""What a result looks like: the table, the chart, the page."""

import io

import pytest
from rich.console import Console

from mergeline.comparison import RESULT
from mergeline.errors import InputError
from mergeline.evaluation.score import Score
from mergeline.plan_file import load_plan
from mergeline.report.chart import draw_chart
from mergeline.report.page import Facts, report_page
from mergeline.report.result import Comparison, RowScores, read_comparison
from mergeline.report.table import markdown_table, own_table, terminal_table
from tasks.recording import scores


def row(name, label, mean, joint):
    tasks = {"clean-02478": Score(mean, 0.01, 500), "half-12679": Score(mean, 0.01, 500)}
    return RowScores(name=name, label=label, tasks=tasks, mean=Score(mean, 0.012, 1000), joint=Score(joint, 0.02, 1000))


@pytest.fixture
def comparison():
    return Comparison(
        plan="two-teams",
        rows=[
            row("a-clean-02478", "a-clean-02478", 0.5, 0.3),
            row("ensemble", "ensemble of 4", 0.9, 0.6),
            row(RESULT, "aligned, PCB", 0.7512, 0.4),
        ],
    )


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_terminal_table_keeps_every_score_whole(comparison, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(terminal_table(comparison))
    text = console.export_text()
    assert "75.1±1.2" in text
    assert "40.0±2.0" in text
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= width


def test_the_markdown_table_marks_the_result(comparison):
    lines = markdown_table(comparison).splitlines()
    assert len(lines) == 5
    assert lines[-1].startswith("| **aligned, PCB** | **75.1 ± 1.0** |")
    assert len({line.count("|") for line in lines}) == 1


def test_the_page_names_what_is_better_than_the_result(comparison):
    plan = load_plan("params.yaml")
    digests = {spec.name: spec.sha256 for spec in plan.checkpoints}
    page = report_page(plan, comparison, Facts(digests, [0.4, 0.5], {"stream": 0.45}, {}), "chart.png")
    assert "The merged model (aligned, PCB) reaches 75.1 ± 1.2 %" in page
    assert "Rows above it: ensemble of 4 (90.0 ± 1.2 %)" in page
    assert "best single task model over the same tasks is a-clean-02478 with 50.0" in page
    assert "![accuracy of every row](chart.png)" in page
    assert "0.4000, 0.5000; weakest group `stream` with 0.450" in page
    alone = comparison.model_copy(update={"rows": comparison.rows[-1:]})
    assert "other row" not in report_page(plan, alone, Facts(digests, [], {}, {}), "chart.png")
    for spec in plan.checkpoints:
        assert f"| {spec.name} | `{spec.uri}` | {spec.base or ''} | `{spec.sha256[:12]}` |" in page


def test_the_chart_has_the_same_bytes_every_time(comparison, tmp_path):
    for name in ("one.png", "two.png"):
        draw_chart(comparison, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    other = Comparison(plan="two-teams", rows=comparison.rows[1:])
    draw_chart(other, tmp_path / "other.png")
    assert (tmp_path / "other.png").read_bytes() != (tmp_path / "one.png").read_bytes()


def test_a_comparison_survives_its_file_and_a_broken_one_is_named(comparison, tmp_path):
    path = tmp_path / "comparison.json"
    with pytest.raises(InputError, match="run `make merge` first"):
        read_comparison(path)
    path.write_text(comparison.model_dump_json())
    assert read_comparison(path) == comparison
    path.write_text("{}")
    with pytest.raises(InputError, match="is not a comparison"):
        read_comparison(path)


def with_own(comparison):
    """The same rows, with the better of two measurements of one own model, and a task outside."""
    own = [row("a-clean-02478", "a", 0.5, 0.3), row("a-clean-02478-reset", "a, reset", 0.8, 0.3)]
    outside = {"other": Score(0.25, 0.01, 100)}
    rows = [one.model_copy(update={"outside": outside}) for one in (*own, comparison.result)]
    return Comparison(plan="two-teams", rows=rows, specialists={"clean-02478": "a-clean-02478", "half-12679": "gone"})


def test_the_result_stands_beside_the_better_measurement_of_each_tasks_own_model(comparison, tmp_path):
    both = with_own(comparison)
    assert both.own == {"clean-02478": Score(0.8, 0.01, 500)}
    lines = own_table(both).splitlines()
    assert lines[2] == "| clean-02478 | 75.1 ± 1.0 | 80.0 ± 1.0 | -4.9 ± 1.4 | 93.9 ± 1.7 |"
    assert lines[3].startswith("| **mean** |  |  | **-4.9 ± 1.4** |")
    assert both.against_own["a-clean-02478"].mean.change == pytest.approx(-0.3)
    metrics = both.metrics()
    assert metrics["change"] == pytest.approx(-0.0488)
    assert metrics["tasks_normalised"] == {"clean-02478": pytest.approx(0.939)}
    path = tmp_path / "comparison.json"
    path.write_text(both.model_dump_json())
    assert read_comparison(path) == both
    assert '"against_own"' in path.read_text()
    assert own_table(comparison) == "" and "change" not in comparison.metrics()


def test_tasks_outside_have_columns_of_their_own(comparison):
    both = with_own(comparison)
    head, _, first, *_ = markdown_table(both).splitlines()
    assert head.endswith("| mean of tasks | joint | other (outside) |")
    assert first.endswith("| 25.0 ± 1.0 |")
    assert both.metrics()["outside"] == {"other": 0.25}
    assert scores(both)["merged/outside/other"] == 0.25
    assert scores(both)["merged/change/task/clean-02478"] == scores(both)["merged/change"] == pytest.approx(-0.0488)
    assert scores(both)["merged/normalised"] == pytest.approx(0.939)
