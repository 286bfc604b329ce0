"""What is copied into a registered model: all modules of a user's own that its factory loads, and what they import."""

import subprocess
import sys
from pathlib import Path

import pytest

from mergeline.plan import Architecture
from mergeline.plan_file import load_plan
from tasks.job import Job
from tasks.publishing import Made
from tasks.registered_model import code_of, data_digest

ROOT = Path(__file__).resolve().parents[2]


def test_modules_beside_that_of_the_factory_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "factory_here.py").write_text(
        "import layers_beside\n\ndef build():\n    return layers_beside.linear()\n"
    )
    (tmp_path / "layers_beside.py").write_text(
        "import tqdm\nfrom torch import nn\n\ndef linear():\n    return nn.Linear(2, 2)\n"
    )
    (tmp_path / "unused_beside.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    sources, packages = code_of(Architecture(factory="factory_here:build"))
    assert [Path(source).name for source in sources] == ["factory_here.py", "layers_beside.py"]
    names = [package.partition("==")[0] for package in packages]
    assert "tqdm" in names and len(names) == len(set(names)), packages


def test_the_models_of_the_project_come_with_its_sources() -> None:
    sources, packages = code_of(Architecture(factory="mergeline.models.resnet:resnet"))
    assert [Path(source).name for source in sources] == ["mergeline"]
    assert any(package.startswith("pydantic==") for package in packages)


@pytest.mark.skipif(sys.platform == "win32", reason="make")
def test_cleaning_keeps_weights_that_registered_models_have_nowhere_else(tmp_path: Path) -> None:
    def clean(*more: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "-f", str(ROOT / "Makefile"), "clean", *more]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    kept = tmp_path / ".store" / "registered" / "abcd"
    kept.parent.mkdir(parents=True)
    kept.touch()
    refused = clean()
    assert refused.returncode and "make clean FORCE=1" in refused.stdout and kept.exists()
    kept.unlink()
    assert clean().returncode == 0 and not (tmp_path / ".store").exists()
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert clean("FORCE=1").returncode == 0 and not kept.exists()


def test_scores_compare_whether_a_landscape_was_drawn_or_not(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    def digest(*overrides: str) -> str:
        plan = load_plan("params.yaml", overrides)
        model = next(iter((job := Job(plan)).datasets.values()))
        made = Made(
            checkpoints={}, datasets=job.datasets, alignment=None, coefficients=None, model=model, normalization={}
        )
        return data_digest(plan, made)

    assert digest("landscape={}") == digest()
    assert digest("landscape={split: test}") == digest(), "what measures the result, too, stays"
    assert digest("calibration.split=validation") != digest()
