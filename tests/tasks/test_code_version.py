"""The version of a stage's code: whatever its module can reach by imports, found by reading."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import mergeline
import tasks
from tasks import code_version as versions
from tasks.code_version import code_version
from tests.prefect_fixtures import forget_sources

Change = Callable[[str, str], None]


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Change]:
    """A package `box`; calling the fixture writes one of its files."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, text: str) -> None:
        path = tmp_path / "box" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        forget_sources()

    write("__init__.py", "")
    yield write
    forget_sources()


CHAIN = {
    "stage.py": "from box.near import f",
    "near.py": "def f():\n    from .sub import far\n    return far.g()",
    "sub/__init__.py": "",
    "sub/far.py": "def g(): return 1",
    "other.py": "x = 1",
}


@pytest.mark.parametrize("name", [name for name in CHAIN if name != "other.py"])
def test_a_change_anywhere_that_imports_lead_to_is_a_new_version(box: Change, name: str) -> None:
    for file, text in CHAIN.items():
        box(file, text)
    before = code_version("box.stage")
    box(name, f"{CHAIN[name]}\nchanged = 1")
    assert code_version("box.stage") != before
    box(name, CHAIN[name])
    assert code_version("box.stage") == before


def test_a_module_that_no_import_leads_to_does_not_count(box: Change) -> None:
    for file, text in CHAIN.items():
        box(file, text)
    before = code_version("box.stage")
    box("other.py", "x = 2")
    assert code_version("box.stage") == before


@pytest.mark.parametrize(
    "statement",
    [
        "import box.a",
        "import box.a as b",
        "from box import a",
        "from box import z, a",
        "from box.a import x",
        "from box.a import *",
        "from . import a",
        "from .a import x",
        "def f():\n    class C:\n        from box import a",
        "if False:\n    import box.a",
        "import importlib\nimportlib.import_module('box.a')",
        "__import__('box.a')",
        "from importlib import import_module\nimport_module(name)",
        "import importlib\nimportlib.import_module('.a', __package__)",
        "import pkgutil\nlist(pkgutil.iter_modules(__path__))",
    ],
)
def test_every_form_of_import_is_seen(box: Change, statement: str) -> None:
    box("a.py", "x = 1")
    box("z.py", "")
    box("stage.py", statement)
    before = code_version("box.stage")
    box("a.py", "x = 2")
    assert code_version("box.stage") != before


def test_relative_imports_climb(box: Change) -> None:
    box("a.py", "x = 1")
    box("sub/__init__.py", "")
    box("sub/stage.py", "from ..a import x")
    before = code_version("box.sub.stage")
    box("a.py", "x = 2")
    assert code_version("box.sub.stage") != before


def test_a_package_on_the_way_counts_for_it_runs(box: Change) -> None:
    box("sub/__init__.py", "")
    box("sub/a.py", "")
    box("stage.py", "import box.sub.a")
    before = code_version("box.stage")
    box("sub/__init__.py", "import os\nos.environ['X'] = '1'")
    assert code_version("box.stage") != before


def test_modules_that_import_each_other_are_no_trap(box: Change) -> None:
    box("stage.py", "import box.a")
    box("a.py", "import box.stage")
    assert len(code_version("box.stage")) == 64


def test_comments_and_layout_do_not_count_and_code_does(box: Change) -> None:
    box("stage.py", "def f(x):\n    return x + 1\n")
    before = code_version("box.stage")
    box("stage.py", "# why\n\n\ndef f( x ):\n    # because\n    return (x + 1)\n")
    assert code_version("box.stage") == before
    box("stage.py", "def f(x):\n    return x + 1.0\n")
    assert code_version("box.stage") != before


def test_within_one_process_a_file_has_one_version(box: Change, tmp_path: Path) -> None:
    """An edit during a run must not become the version of the code that is already loaded."""
    box("stage.py", "x = 1")
    before = code_version("box.stage")
    (tmp_path / "box" / "stage.py").write_text("x = 2")
    assert code_version("box.stage") == before


def test_the_version_of_a_numeric_package_counts(box: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    box("stage.py", "")
    before = code_version("box.stage")
    forget_sources()
    installed = versions.version
    monkeypatch.setattr(versions, "version", lambda name: "0.0" if name == "numpy" else installed(name))
    assert code_version("box.stage") != before


def test_a_module_beside_the_package_is_the_users_own(box: Change, tmp_path: Path) -> None:
    box("stage.py", "import json\nfrom layers import block")
    box("../layers.py", "from parts.inner import block")
    box("../parts/inner.py", "block = 1")
    assert set(versions._reachable("box.stage")) == {"box", "box.stage", "layers", "parts.inner"}
    before = code_version("box.stage")
    box("../parts/inner.py", "block = 2")
    assert code_version("box.stage") != before


@pytest.mark.parametrize(
    ("module", "package", "counts"),
    [
        ("box.stage", "timm", True),
        ("box.stage", "pillow", True),
        ("box.stage", "prefect", False),
        ("mergeline.report.chart", "matplotlib", True),
        ("mergeline.report.chart", "pillow", False),
        ("tasks.evaluation", "prefect", False),
    ],
)
def test_the_version_of_a_package_counts_where_it_is_imported(
    box: Change, monkeypatch: pytest.MonkeyPatch, module: str, package: str, counts: bool
) -> None:
    box("stage.py", "import timm.models\nfrom PIL import Image")
    before = code_version(module)
    forget_sources()
    installed = versions.version
    monkeypatch.setattr(versions, "version", lambda name: "0.0" if name == package else installed(name))
    assert (code_version(module) != before) == counts


def test_the_project_is_followed_from_outside_and_its_infrastructure_is_not(box: Change) -> None:
    box("stage.py", "from tasks.policy import stage\nfrom tasks.store import put_file\nimport mergeline.errors, json")
    assert set(versions._reachable("box.stage")) == {"box", "box.stage", "mergeline.errors"}


@pytest.mark.parametrize("statement", ["import mergeline as ml", "from mergeline import merge", "import mergeline"])
def test_the_lazy_package_cannot_hide_what_a_stage_uses(box: Change, statement: str) -> None:
    box("a.py", statement)
    box("stage.py", "import box.a")
    with pytest.raises(ValueError, match=r"box\.a imports .* from the lazy package 'mergeline'"):
        code_version("box.stage")


@pytest.mark.parametrize("name", sorted(path.stem for path in Path(tasks.__path__[0]).glob("[!_]*.py")))
def test_no_module_of_tasks_hides_what_it_uses(name: str) -> None:
    assert len(code_version(f"tasks.{name}")) == 64


def test_no_module_of_mergeline_hides_what_it_uses() -> None:
    root = Path(mergeline.__path__[0])
    for path in root.rglob("[!_]*.py"):
        code_version(".".join(["mergeline", *path.relative_to(root).with_suffix("").parts]))


def test_reading_imports_nothing() -> None:
    script = """
import sys
from tasks.code_version import code_version
from tests.prefect_fixtures import forget_sources
code_version("mergeline.checkpoints.readers")
print(sorted({"torch", "numpy", "safetensors", "prefect"} & set(sys.modules)))
"""
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "[]\n"


@pytest.mark.parametrize("name", ["no_such_module", "math", "box.missing"])
def test_a_module_without_a_source_has_no_version(box: Change, name: str) -> None:
    with pytest.raises(ValueError, match="has no source file"):
        code_version(name)


def test_imports_for_the_type_checker_alone_do_not_count(box: Change) -> None:
    for file, text in CHAIN.items():
        box(file, text)
    guarded = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from box.other import x\n"
    box("stage.py", f"{guarded}else:\n    from box.near import f")
    before = code_version("box.stage")
    box("other.py", "x = 2")
    assert code_version("box.stage") == before
    box("near.py", f"{CHAIN['near.py']}\nchanged = 1")
    assert code_version("box.stage") != before


def test_a_stage_depends_on_what_it_calls_and_not_on_its_neighbours() -> None:
    method = "mergeline.merging.pcb"
    assert method in versions._reachable("tasks.merging")
    for neighbour in ("checkpoints", "activations", "similarity", "permutations", "evaluation", "normalization"):
        assert method not in versions._reachable(f"tasks.{neighbour}"), neighbour


def test_stages_that_start_at_once_may_all_ask_for_their_version() -> None:
    modules = [f"tasks.{path.stem}" for path in sorted(Path(tasks.__file__).parent.glob("[a-z]*.py"))]
    expected = [code_version(module) for module in modules]
    for _ in range(3):
        forget_sources()
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(code_version, modules)) == expected
