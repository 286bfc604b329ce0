"""The settings: made before any tool is imported, defaults only, and cheap."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import _env

CHECKOUT = Path(_env.__file__).resolve().parent.parent


def environment_of(script: str, cwd: Path, **variables: str) -> dict[str, str]:
    """What `script`, run by a new Python in `cwd`, prints as JSON."""
    clean = {k: v for k, v in os.environ.items() if k not in _env.tool_settings(cwd) | _env.arithmetic_settings()}
    clean = {k: v for k, v in clean.items() if not k.startswith("MERGELINE_") and k not in PINS}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=cwd, env=clean | variables, capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout)


PINS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "OPENBLAS_CORETYPE")
SETTINGS = "import json, os, tasks; print(json.dumps(dict(os.environ)))"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "flows").mkdir()
    (tmp_path / "params.yaml").touch()
    return tmp_path.resolve()


def test_state_lies_in_the_project_that_one_stands_in(project: Path) -> None:
    (project / "notebooks").mkdir()
    found = environment_of(SETTINGS, project / "notebooks")
    assert found["MERGELINE_STATE"] == str(project)
    assert found["PREFECT_HOME"] == str(project / ".prefect")
    assert found["HF_HOME"] == str(project / ".hf")
    assert found["MLFLOW_TRACKING_URI"] == f"sqlite:///{project}/.mlflow/mlflow.db"


def test_what_the_environment_says_wins(project: Path) -> None:
    found = environment_of(SETTINGS, project, MERGELINE_STATE="elsewhere", PREFECT_HOME="/p", MKL_CBWR="AUTO")
    assert (found["MERGELINE_STATE"], found["PREFECT_HOME"]) == (str(project / "elsewhere"), "/p")
    assert found["MKL_CBWR"] == "AUTO"


def test_the_number_of_threads_is_no_matter_of_the_environment(project: Path) -> None:
    assert environment_of(SETTINGS, project, OMP_NUM_THREADS="8")["OMP_NUM_THREADS"] == "1"


def test_fresh_tells_prefect_to_ignore_records(project: Path) -> None:
    assert "PREFECT_TASKS_REFRESH_CACHE" not in environment_of(SETTINGS, project, MERGELINE_FRESH="0")
    assert environment_of(SETTINGS, project, MERGELINE_FRESH="1")["PREFECT_TASKS_REFRESH_CACHE"] == "true"


def test_importing_the_settings_imports_no_tool(project: Path) -> None:
    script = "import json, sys, tasks, flows; print(json.dumps({m: '' for m in sys.modules}))"
    heavy = {"prefect", "mlflow", "torch", "numpy", "pydantic", "dvc", "datasets"}
    assert heavy.isdisjoint(environment_of(script, project))


def test_a_root_that_is_given_is_taken(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MERGELINE_ROOT", raising=False)
    assert _env.project_root(project) == project
    monkeypatch.setenv("MERGELINE_ROOT", str(tmp_path / "given"))
    assert _env.project_root(project) == tmp_path / "given"


def test_a_temporary_copy_that_dvc_made_shares_the_state_of_its_original() -> None:
    assert _env.default_state(Path("/home/me/project/.dvc/tmp/exps/standalone/tmp123")) == Path("/home/me/project")
    assert _env.default_state(Path("/home/me/exps/project")) == Path("/home/me/exps/project")


@pytest.mark.skipif(not _env._has_avx2(), reason="the pins are for x86 with AVX2")
def test_the_instruction_set_is_pinned_before_torch_is_imported_and_left_alone_after(project: Path) -> None:
    before = "import json, tasks, torch; print(json.dumps([torch.backends.cpu.get_cpu_capability()]))"
    assert environment_of(before, project) == ["AVX2"]
    after = f"import json, os, sys; sys.modules['torch'] = json; {SETTINGS}"
    assert set(PINS).isdisjoint(environment_of(after, project))


def test_one_thread_for_a_torch_that_is_already_there() -> None:
    import torch

    torch.set_num_threads(2)
    try:
        _env.use_one_thread()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)


def test_the_prefect_command_finds_the_same_home_as_the_flows() -> None:
    import tomllib

    settings = tomllib.loads((CHECKOUT / "prefect.toml").read_text())
    variables = _env.tool_settings(Path("/state"))
    assert settings["home"] == ".prefect"
    assert variables["PREFECT_HOME"] == "/state/.prefect"
    assert str(settings["server"]["analytics_enabled"]).lower() == variables["PREFECT_SERVER_ANALYTICS_ENABLED"]
    ephemeral = settings["server"]["ephemeral"]
    assert str(ephemeral["startup_timeout_seconds"]) == (variables["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"])
