"""Arrows only point down: mergeline knows nothing of its orchestrator, tasks nothing of flows."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {"mergeline": {"prefect", "mlflow", "dvc", "tasks", "flows"}, "tasks": {"flows", "dvc"}}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("floor", FORBIDDEN)
def test_imports_point_down(floor):
    files = sorted((ROOT / floor).rglob("*.py"))
    assert files
    for path in files:
        assert not FORBIDDEN[floor] & set(imported(path)), path


def test_checking_a_plan_imports_nothing_heavy():
    program = (
        "import sys\n"
        "from mergeline.plan_file import load_plan\n"
        "load_plan('params.yaml')\n"
        "sys.exit(bool({'torch', 'prefect', 'mlflow', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_every_public_name_is_there():
    import mergeline

    for name in mergeline.__all__:
        assert getattr(mergeline, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'merg'"):
        mergeline.merg  # noqa: B018
