"""The HTML report: the verdict first, hostile names harmless, the same bytes of the same result."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from mergeline.report.figures import Picture, heat_map, task_bars
from mergeline.report.html import draw, report_html
from mergeline.report.page import Facts
from mergeline.report.result import Comparison
from mergeline.report.verdict import verdict
from tests.report.findings import RUN, comparison, findings, lineage, plan, row

HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(1)>'
PIXEL = heat_map([[0.5]])


class Page(HTMLParser):
    """What a parser sees: the tags with their attributes, the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_verdict_comes_first_and_the_result_is_emphasised():
    text = report_html(plan(), comparison(0.7, 0.9, ensemble=0.85, average=0.5), findings())
    assert text.index("Better than averaging, but worse than its own task models") < text.index("<h2>Result</h2>")
    [emphasised] = re.findall(r'<tr class="result"><th scope="row">([^<]*)</th><td>', text.partition("Lineage")[0])
    assert emphasised == "aligned, PCB"
    assert "70.0 ± 1.0" in text
    assert "-20.0 ± 1.1" in text  # beside its task models: the error of their mean is half of each


@pytest.mark.parametrize(
    ("scores", "headline", "standing"),
    [
        ({"result": 0.4, "average": 0.5}, "Not good enough: averaging the same models scores better.", "below"),
        ({"result": 0.5, "average": 0.5}, "Not good enough: no better than averaging the same models.", "below"),
        ({"result": 0.7, "average": 0.5}, "Better than averaging, but worse than its own task models", "below"),
        ({"result": 0.7}, "Worse than its own task models", "below"),
        ({"result": 0.9, "average": 0.5}, "As good as its own task models, each on its own task.", "about the same"),
        ({"result": 0.9, "ensemble": 0.95}, "As good as its own task models, each on its own task; the ens", "about"),
        ({"result": 0.95, "average": 0.5}, "Better than its own task models", "above"),
        ({"result": 0.7, "models": None, "ensemble": 0.9}, "Worse than the ensemble", "below"),
        ({"result": 0.7, "models": None, "aligned_average": 0.5}, "Better than averaging the same models.", "above"),
        ({"result": 0.7, "models": None}, "Not compared", None),
    ],
)
def test_the_verdict_is_honest(scores, headline, standing):
    found = verdict(plan(), comparison(**scores))
    assert found.headline.startswith(headline)
    assert (found.standing or "").startswith(standing or "") and (found.standing is None) == (standing is None)


def test_each_task_stands_beside_its_own_model_with_what_is_kept_of_it():
    text = report_html(plan(), comparison(0.72, 0.9, average=0.5), findings())
    _, found, below = text.partition("Beside each task's own model")
    numbers = "".join(f"<td>{text}</td>" for text in ("72.0 ± 1.0", "90.0 ± 1.0", "-18.0 ± 1.4", "80.0 ± 1.4"))
    assert found and f'<tr><th scope="row">clean-02478</th>{numbers}' in below
    assert '<th scope="row">mean</th><td></td><td></td><td>-18.0 ± 0.7</td>' in below
    assert "own model" not in report_html(plan(), comparison(0.7, None, average=0.5), findings())


def test_a_task_outside_does_not_hide_the_tasks_own_models():
    shipped = plan()
    outside = shipped.tasks[0].model_copy(update={"name": "outside", "checkpoint": None})
    wider = shipped.model_copy(update={"tasks": [*shipped.tasks, outside]})
    assert verdict(wider, comparison()) == verdict(shipped, comparison())


def test_where_there_is_no_other_row_nothing_is_said_of_them():
    alone = report_html(plan(), comparison(0.7, None), findings())
    assert "Not compared" in alone and "other row" not in alone and "About the same" not in alone
    beside = report_html(plan(), comparison(0.7, 0.6), findings())
    assert "No other row scores better" in beside and "About the same" in beside


def test_two_standard_errors_decide():
    def standing(value):
        rows = [row("ensemble", value), *comparison(0.7, None).rows]
        return verdict(plan(), Comparison(plan="p", rows=rows)).beside[0].standing

    assert standing(0.7 + 0.028) == "about the same"
    assert standing(0.7 + 0.029) == "below"
    assert standing(0.7 - 0.029) == "above"


def test_hostile_names_are_text():
    rows = [row(task.checkpoint, 0.9) for task in plan().tasks] + [
        row("ensemble", 0.8, HOSTILE),
        row("merged", 0.7, HOSTILE),
    ]
    facts = Facts({}, [0.4], {HOSTILE: 0.4}, {})
    inputs = [{"kind": HOSTILE, "name": HOSTILE, "source": f"javascript:{HOSTILE}", "sha256": HOSTILE}]
    known = lineage(inputs=inputs, files={HOSTILE: HOSTILE}, code=HOSTILE, packages={HOSTILE: HOSTILE})
    picture = Picture(f'{HOSTILE}" onload="alert(1)', f'{HOSTILE}" onload="alert(1)', PIXEL, HOSTILE)
    found = replace(
        findings(), facts=facts, lineage=known, pictures=[picture], run=replace(RUN, facts={HOSTILE: HOSTILE})
    )
    page = Page(report_html(plan(), Comparison(plan="p", rows=rows), found))
    assert not page.all("script")
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert all(attributes["src"].startswith("data:") for attributes in page.all("img"))
    assert page.text.count(HOSTILE) > 10


def test_nothing_is_asked_of_anyone_and_every_picture_has_its_words():
    picture = Picture("A landscape", "Two valleys", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "Seen from above.")
    page = Page(report_html(plan(), comparison(), replace(findings(), pictures=[picture])))
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert not attributes.get(name) or attributes[name].startswith(("data:", "#")), attributes
    assert all(attributes["alt"] for attributes in page.all("img"))
    assert [attributes["aria-label"] for attributes in page.all("svg")]
    assert "Two valleys" in [attributes["alt"] for attributes in page.all("img")]
    assert "Seen from above." in page.text
    identities = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identities) == len(set(identities))


def test_a_plan_without_tasks_says_so():
    text = report_html(plan(), Comparison(plan="two-teams", rows=[]), findings())
    assert "Merged; there are no tasks to measure it on." in text
    assert "<h2>Result</h2>" not in text and "<h2>Plan</h2>" in text


def test_what_did_not_happen_is_not_shown():
    text = report_html(plan("merge={method: average}"), comparison(), findings(aligned=False, competed=False))
    for missing in ("<h2>Matching</h2>", "<h2>Competition", "<h2>More pictures</h2>", "<h2>This run</h2>"):
        assert missing not in text
    zipped = report_html(plan("align.method=zip"), comparison(), findings(competed=False))
    assert "base-b zipped with" in zipped


def test_equal_results_give_equal_bytes_and_times_are_in_the_copy_of_the_run_alone():
    published = report_html(plan(), comparison(average=0.5), findings())
    assert report_html(plan(), comparison(average=0.5), findings()) == published
    assert report_html(plan(), comparison(average=0.6), findings()) != published
    copy = report_html(plan(), comparison(average=0.5), findings(run=RUN))
    assert "c0ffee" in copy and "2.25" in copy
    section = copy[copy.index("<section>\n<h2>This run</h2>") : copy.rindex("</main>")]
    assert copy.replace(section, "") == published


def test_secrets_are_masked_before_they_are_escaped(monkeypatch):
    monkeypatch.setenv("MODEL_SERVER_TOKEN", "s3cret&<more>")
    known = lineage(inputs=[{"kind": "checkpoint", "name": "a", "source": "x s3cret&<more> y", "sha256": None}])
    text = report_html(plan(), comparison(), findings(lineage=known))
    assert "s3cret" not in text and "x *** y" in text


def test_a_picture_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="neither PNG nor SVG"):
        report_html(plan(), comparison(), findings(pictures=[Picture("a", "b", b"GIF89a")]))


def test_the_bars_of_the_tasks_own_models_are_the_better_of_both_as_in_the_table():
    """As trained and with its statistics reset: the order of the rows says nothing."""

    def drawn(trained, reset):
        both = comparison(models=trained)
        rows = [row(f"{name}-reset", reset) for name in both.specialists.values()]
        return task_bars(both.model_copy(update={"rows": [*rows, *both.rows]})).data

    assert drawn(0.9, 0.5) == drawn(0.5, 0.9) == task_bars(comparison(models=0.9)).data
    assert drawn(0.5, 0.5) != drawn(0.9, 0.5)


def test_a_page_of_pictures_that_are_drawn_already_is_the_same():
    found = findings()
    drawn = draw(plan(), comparison(), found)
    assert set(drawn) == {"tasks", "objective", "coefficients"}
    assert report_html(plan(), comparison(), found, drawn) == report_html(plan(), comparison(), found)
