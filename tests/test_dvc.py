"""What dvc.yaml declares of a result, as DVC shows and compares it between two commits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mergeline.comparison import RESULT
from mergeline.evaluation.score import Score
from mergeline.report.chart import draw_chart
from mergeline.report.result import Comparison, RowScores

ROOT = Path(__file__).resolve().parent.parent
METRICS, CHART = "data/merged/metrics.json", "data/merged/chart.png"


def run(*command):
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


def dvc(*arguments):
    return run(sys.executable, "-m", "dvc", *arguments)


def row(name, values, outside):
    tasks = {task: Score(value, 0.02, 500) for task, value in values.items()}
    mean = Score(sum(values.values()) / len(values), 0.01, 1000)
    apart = {task: Score(value, 0.02, 500) for task, value in outside.items()}
    return RowScores(name=name, label=name, tasks=tasks, mean=mean, joint=mean, outside=apart)


def comparison(tops, shoes, **outside):
    """A merged model beside the models of its two tasks."""
    rows = [row(name, {"tops": 0.8, "shoes": 0.5}, {}) for name in ("a", "b")]
    merged = row(RESULT, {"tops": tops, "shoes": shoes}, outside)
    return Comparison(plan="plan", rows=[*rows, merged], specialists={"tops": "a", "shoes": "b"})


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A repository with our declaration of metrics and plots, and two results, each of them committed."""
    folder, aside = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("aside")
    variables = {name: str(aside) for name in ("DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR", "DVC_SITE_CACHE_DIR")}
    variables |= {f"GIT_{role}_NAME": "test" for role in ("AUTHOR", "COMMITTER")}
    variables |= {f"GIT_{role}_EMAIL": "test@localhost" for role in ("AUTHOR", "COMMITTER")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (variables | {"GIT_CONFIG_GLOBAL": os.devnull}).items():
            patch.setenv(name, value)
        patch.chdir(folder)
        run("git", "init", "--quiet")
        dvc("init", "--quiet")
        stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["merge"]
        shown = {key: stage[key] for key in ("metrics", "plots")}
        (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"merge": {"cmd": stage["cmd"], **shown}}}))
        (folder / "data/merged").mkdir(parents=True)
        for found in (comparison(0.6, 0.5, coats=0.3), comparison(0.7, 0.25, coats=0.45, bags=0.1)):
            (folder / METRICS).write_text(json.dumps(found.metrics(), indent=1) + "\n")
            draw_chart(found, folder / CHART)
            dvc("commit", "--quiet", "--force", "merge")
            run("git", "add", "--all")
            run("git", "commit", "--quiet", "--message=result")
        yield folder


def test_metrics_of_two_commits_are_compared_field_by_field(project):
    changed = json.loads(dvc("metrics", "diff", "--json", "HEAD~1", "HEAD"))[METRICS]
    expected = {
        "tasks.tops": (0.6, 0.7),
        "tasks_change.tops": (-0.2, -0.1),
        "tasks_normalised.shoes": (1.0, 0.5),
        "change": (-0.1, -0.175),
        "normalised": (0.875, 0.6875),
        "outside.coats": (0.3, 0.45),
    }
    for field, (old, new) in expected.items():
        assert (changed[field]["old"], changed[field]["new"]) == (pytest.approx(old), pytest.approx(new)), field
        assert changed[field]["diff"] == pytest.approx(new - old), field
    assert changed["outside.bags"] == {"old": None, "new": 0.1}, "a task that one of them did not have"
    fields = json.loads((project / METRICS).read_text())
    numbers = {f"{name}.{key}" if isinstance(found, dict) else name for name, found in fields.items()
               for key in (found if isinstance(found, dict) else [""])}  # fmt: skip
    shown = json.loads(dvc("metrics", "show", "--json"))[""]["data"][METRICS]["data"]
    assert shown == fields
    assert set(changed) <= numbers


def test_metrics_are_a_table_for_people(project):
    lines = dvc("metrics", "diff", "--md", "HEAD~1", "HEAD").splitlines()
    (line,) = [line for line in lines if "tasks_normalised.shoes" in line]
    assert [cell.strip() for cell in line.strip("| ").split("|")][2:] == ["1.0", "0.5", "-0.5"]


@pytest.mark.parametrize("command", [["show"], ["diff", "HEAD~1", "HEAD"]], ids=["show", "diff"])
def test_charts_are_shown_as_they_were_committed(project, command, tmp_path):
    dvc("plots", *command, "--out", tmp_path / "shown")
    page = (tmp_path / "shown" / "index.html").read_text()
    pictures = {path: path.read_bytes() for path in (tmp_path / "shown").rglob("*.png")}
    assert len(pictures) == len(set(pictures.values())) == len(command[1:] or [""])
    assert all(path.name in page for path in pictures)
    assert (project / CHART).read_bytes() in pictures.values()
