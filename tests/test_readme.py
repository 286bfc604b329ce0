"""A new user: a fresh clone, the commands of the README, and what they leave behind."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(sys.prefix)
SET_BY_US = re.compile(r"MERGELINE_|PREFECT_|MLFLOW_|HF_|DVC_|ATEN_|ONEDNN_|MKL_|OPENBLAS_|OMP_|MAKE|MFLAGS")

pytestmark = pytest.mark.flow


@pytest.fixture(scope="module")
def clone(tmp_path_factory, prefect_server):
    """A clone of the last commit, and how to run a command in it the way a shell of a new user would."""
    from prefect.settings import PREFECT_API_URL

    folder = tmp_path_factory.mktemp("user") / "mergeline"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    environment = {name: value for name, value in os.environ.items() if not SET_BY_US.match(name)}
    environment |= {
        "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}",
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),  # a running server: the flows start in seconds
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "HF_HUB_OFFLINE": "1",
    }

    def run(command):
        if command.startswith("make "):  # with the environment that runs this test, which is there already
            command = f"{command} VENV={VENV} -o {VENV / '.ready'}"
        result = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        return result.stdout

    run.folder = folder
    return run


def commands():
    """Every command in the README's sh blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def merged(clone):
    return clone("make merge")


def test_the_readme_has_the_two_commands_first():
    assert commands()[:2] == ["make merge", "make test"]


def test_make_merge_shows_the_result_and_leaves_the_clone_as_it_was(clone, merged):
    assert "aligned, PCB" in merged
    for link in ("report   data/merged/report.html", "MLflow   http://", "Prefect  http://"):
        assert link in merged
    assert clone("git status --porcelain") == "", "dvc.lock and metrics.json must be those of the last commit"


def test_make_merge_again_does_nothing(clone, merged):
    before = (clone.folder / "data/merged/model.safetensors").stat().st_mtime_ns
    again = clone("make merge")
    assert "aligned, PCB" in again
    assert (clone.folder / "data/merged/model.safetensors").stat().st_mtime_ns == before
    assert "up to date" in clone("dvc status")


def test_a_run_of_the_flow_itself_comes_from_the_cache_and_says_so(clone, merged):
    assert "all 49 stages came from the cache" in clone("python -m flows.merge_and_evaluate")


@pytest.mark.parametrize("command", commands()[2:])
def test_every_other_command_works(clone, merged, command):
    if "merged_mudsc" in command:
        clone("python -m flows.merge_and_evaluate --params params/mudsc.yaml --no-table")
    assert clone(command).strip()


def test_make_help_names_every_target(clone):
    text = clone("make help")
    for target in re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE):
        assert f"make {target}" in text


def test_make_ui_shows_both_pages_and_ends_with_ctrl_c(clone):
    ports = [free_port(), free_port()]
    environment = {name: value for name, value in os.environ.items() if not SET_BY_US.match(name)}
    command = [sys.executable, "-m", "flows.show_ui", "--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])]
    shown = subprocess.Popen(command, cwd=clone.folder, env=environment, start_new_session=True)
    try:
        for port, path in zip(ports, ("/api/health", "/health"), strict=True):
            assert answers(f"http://127.0.0.1:{port}{path}", shown), path
        shown.send_signal(signal.SIGINT)
        assert shown.wait(60) == 0
    finally:
        if shown.poll() is None:
            shown.kill()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url, process):
    """Whether the page comes up while the process lives; asks again until it does."""
    while process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as page:
                return page.status == 200
        except OSError:  # not up yet: look again, unless the process ends before
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
    return False


def test_links_in_the_documents_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
