"""A recorded run made again in a fresh clone: its inputs, its plan, and what came out compared byte for byte."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mergeline.checkpoints.files import digest_of_files, is_index
from mergeline.comparison import OWN_MODELS
from mergeline.errors import InputError
from mergeline.plan import BESIDE
from tasks._env import tool_settings
from tasks.run_lookup import RecordedRun
from tasks.store import digest, held, held_folder
from tasks.versioning import CHANGES, CODE, DIRTY, MACHINE, MD5, PACKAGE, dvc_md5, machine_facts, package_versions

REBUILT, PLAN_FILE = "rebuilt", "rebuilt.yaml"
COMPARED = ["normalization", "heads", "alignment", "coefficients", "uncalibrated", "calibration.json", "metrics.json"]
"""What is compared beside the files of the model."""


def bring_inputs(run: RecordedRun, project: Path, clone: Path) -> None:
    """Put every local input into the clone that its commit does not have: from the working tree, or from the store.

    InputError naming every input that is nowhere, or is another one than the run read.
    """
    faults: list[str] = []
    for entry in run.lineage["inputs"]:
        converted = entry["kind"] == "dataset" and not str(entry["source"]).endswith(".parquet")
        label_column = _label_column(run, Path(entry["source"]).parent) if converted else ""
        faults += _bring_converted(entry, label_column, project, clone) if converted else _bring(entry, project, clone)
    if faults:
        raise InputError("\n".join([*faults, "`dvc pull` or `git lfs pull` may bring files back; then try again"]))


def _bring(entry: Mapping[str, Any], project: Path, clone: Path) -> Iterator[str]:
    source = str(entry["source"]).removeprefix("file://")
    if re.match(r"\w[\w+.-]*:/", source):
        return  # is downloaded, and its digest compared, by the run
    files = entry.get("files") or {"": entry["sha256"]}
    for name, sha256 in files.items():
        relative = _folder_of(source, project, clone) / name if name else Path(source)
        found = {place: _sha256(place / relative) for place in (clone, project)}
        if found[clone] == sha256:
            continue
        kept = project / relative if found[project] == sha256 else _kept(entry, name, sha256)
        if kept is None or relative.is_absolute():
            other = found[project] or found[clone]
            state = f"has sha256 {other}" if other else "is neither in the commit, nor in the working tree or the store"
            yield f"{entry['kind']} {entry['name']}: {relative} {state}; the run read {sha256}"
            continue
        (clone / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kept, clone / relative)


def _bring_converted(entry: Mapping[str, Any], label_column: str, project: Path, clone: Path) -> Iterator[str]:
    """A split that the run read as the Parquet file which its pictures, or its CSV or Arrow file, come to. All of its
    folder is brought: the splits beside it name the classes, too."""
    relative = Path(entry["source"])
    if re.match(r"\w[\w+.-]*:/", str(entry["source"])):
        return
    found = {place: _sha256_as_parquet(place / relative, label_column) for place in (clone, project)}
    if found[clone] == entry["sha256"]:
        return
    if found[project] == entry["sha256"] and not relative.is_absolute():
        shutil.copytree(project / relative.parent, clone / relative.parent, dirs_exist_ok=True)
        return
    other = found[project] or found[clone]
    state = f"comes to sha256 {other}" if other else "is neither in the commit nor in the working tree"
    yield f"{entry['kind']} {entry['name']}: {relative} {state}; the run read {entry['sha256']}"


def _sha256_as_parquet(source: Path, label_column: str) -> str | None:
    from mergeline.evaluation.sources import write_parquet

    with TemporaryDirectory(prefix="rebuild-") as folder:
        target = Path(folder) / "split.parquet"
        try:
            write_parquet(source, target, label_column)
        except (InputError, OSError):
            return None
        return digest(target)


def _label_column(run: RecordedRun, folder: Path) -> str:
    """The column of labels of the plan's data set that lies in this folder."""
    named = run.lineage["plan"]["datasets"].values()
    return next((str(one["label_column"]) for one in named if one["path"] and Path(one["path"]) == folder), "label")


def _kept(entry: Mapping[str, Any], name: str, sha256: str) -> Path | None:
    """Where the store has a file, unaltered: on its own, or under its name in the folder that the run read."""
    folder = held_folder(entry["sha256"]) if name else None
    places = (folder / name if folder else None, held(sha256))
    return next((place for place in places if place is not None and _sha256(place) == sha256), None)


def _folder_of(source: str, project: Path, clone: Path) -> Path:
    """The folder of a checkpoint of many files, which its folder or a file in it may name."""
    path = Path(source)
    is_file = is_index(path.name) or any((place / path).is_file() for place in (project, clone))
    return path.parent if is_file else path


def _sha256(path: Path) -> str | None:
    try:
        return digest(path) if path.is_file() else None
    except OSError:
        return None


def write_plan(run: RecordedRun, clone: Path) -> Path:
    """The recorded plan with every checkpoint pinned to what was read, less what only compares and tells."""
    plan = copy.deepcopy(run.lineage["plan"])
    read = {entry["name"]: entry for entry in run.lineage["inputs"] if entry["kind"] == "checkpoint"}
    for checkpoint in plan["checkpoints"]:
        entry = read[checkpoint["name"]]
        checkpoint["sha256"] = digest_of_files(entry["files"]) if entry.get("files") else entry["sha256"]
        if re.match("(models|runs):/", entry["source"]):
            checkpoint["uri"] = entry["source"]  # the version, where the plan names an alias
    plan = {name: value for name, value in plan.items() if name not in BESIDE}
    plan["output"] = REBUILT
    plan["tracking"]["enabled"] = False
    compared = plan["evaluation"]["compare"]  # of the other rows, metrics.json says nothing
    plan["evaluation"]["compare"] = [kind for kind in compared if kind in OWN_MODELS]
    if plan.get("calibrate"):
        plan["calibrate"]["control_data"] = None  # it is for one of those rows
    own: dict[str, Any] = {"runner": "threads", "workers": None, "export": []}
    plan |= {name: value for name, value in own.items() if name in plan}
    path = clone / PLAN_FILE
    path.write_text(json.dumps(plan, indent=1) + "\n")  # JSON is YAML
    return path


def differences(run: RecordedRun, clone: Path, state: Path) -> list[str]:
    """One sentence for everything that is not as it was and may change a byte: code, packages, processor."""
    found = []
    code = _code_in(clone, state)
    if code != run.tags[CODE]:
        why = "at this commit the code is another one"
        if run.tags.get(DIRTY) == "true":
            why = f"the run was made with changes that were not committed: {run.tags.get(CHANGES, '')}"
        now = (code or "unknown")[:16]
        found.append(f"code: {why} (digest {run.tags[CODE][:16]} then, {now} in {run.commit[:12]})")
    packages = package_versions()
    for tag, then in run.tags.items():
        name = tag.removeprefix(PACKAGE)
        if tag.startswith(PACKAGE) and packages.get(name) != then:
            found.append(f"package {name}: {then} then, {packages.get(name, 'absent')} now")
    for name, value in machine_facts().items():
        then = run.tags.get(MACHINE + name, value)
        if name != "platform" and then != value:
            found.append(f"{name}: {then} then, {value} now")
    return found


def _code_in(clone: Path, state: Path) -> str | None:
    """The digest of the code of a clone, as it computes it itself; None where it cannot."""
    program = (
        "from mergeline.plan_file import load_plan; from tasks.lineage import code_digest; "
        f"print(code_digest(load_plan('{PLAN_FILE}')))"
    )
    done = _python(clone, state, "-c", program)
    return done.stdout.strip() or None if done.returncode == 0 else None


def run_plan(clone: Path, state: Path) -> Path:
    """Run the main job of a clone on state of its own, so that nothing is taken from a cache; returns the result.

    InputError with what it said where it failed.
    """
    done = _python(clone, state, "-m", "flows.merge_and_evaluate", "--no-table", "--params", PLAN_FILE)
    if done.returncode:
        raise InputError(f"the run in the clone failed (exit code {done.returncode}):\n{done.stderr.strip()[-4000:]}")
    return clone / REBUILT


def _python(clone: Path, state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = ("HF_HOME", "MLFLOW_TRACKING_URI")  # where checkpoints may come from
    settings = {name: value for name, value in tool_settings(state).items() if name not in kept}
    environment = {name: value for name, value in os.environ.items() if name not in ("MERGELINE_ROOT", "PYTHONPATH")}
    environment |= settings | {"MERGELINE_STATE": str(state)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)


def unlike(run: RecordedRun, rebuilt: Path) -> tuple[list[str], list[str]]:
    """Names of what came out the same to the last byte, and one sentence for each of the others."""
    expected = {name: ("sha256", sha256) for name, sha256 in run.lineage["files"].items()}
    expected |= {name: ("md5", md5) for name in COMPARED if (md5 := run.tags.get(MD5 + name))}
    same, other = [], []
    for name, (kind, then) in expected.items():
        path = rebuilt / name
        now = None if not path.exists() else digest(path) if kind == "sha256" else dvc_md5(path)
        if now == then:
            same.append(name)
        else:
            other.append(f"{name}: {kind} {then} then, {now or 'not made'} now")
    return same, other
