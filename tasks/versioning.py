"""What git and DVC know of a result, and clones of a commit to make it again in.

Only files are read, and git is asked without taking its locks: a run inside `dvc repro`, which holds the locks of DVC,
can do all of this.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mergeline.errors import InputError
from mergeline.plan import Plan
from tasks._env import project_root
from tasks.code_version import installed
from tasks.lineage import COMPUTING, EXPORTING, code_digest

log = logging.getLogger(__name__)

COMMIT = "mlflow.source.git.commit"  # where MLflow's pages look for it
DIRTY, CHANGES = "mergeline.dirty", "mergeline.changes"
PLAN, CODE, MODEL = "mergeline.plan_sha256", "mergeline.code_sha256", "mergeline.model_sha256"
MD5 = "dvc.md5."  # + name of what is published: the md5 that dvc.lock has
PACKAGE, MACHINE = "package.", "machine."

_TAG_LENGTH = 4000  # characters that MLflow takes


def version_tags(plan: Plan, model: str, published: Iterable[Path]) -> dict[str, str]:
    """Tags of a run: commit, what was changed since, digests of plan, code, model and of all that was published (as
    dvc.lock names them), packages with their builds, and the machine. model: its sha256."""
    root = project_root()
    tags = {PLAN: plan_digest(plan.model_dump(mode="json")), CODE: code_digest(plan), MODEL: model}
    tags |= _commit_tags(root, besides=[plan.output, root / "dvc.lock"])
    tags |= {MD5 + path.name: dvc_md5(path) for path in published if path.exists()}
    tags |= {PACKAGE + name: version for name, version in package_versions().items()}
    return tags | {MACHINE + name: value for name, value in machine_facts().items()}


def _commit_tags(root: Path, besides: Iterable[Path]) -> dict[str, str]:
    """The commit and what was changed since; where there is no repository (an image), what MERGELINE_COMMIT says."""
    if commit := head(root):
        changed = changes(root, besides)
        tags = {COMMIT: commit, DIRTY: str(bool(changed)).lower()}
        return tags | ({CHANGES: " ".join(changed)[:_TAG_LENGTH]} if changed else {})
    if not (given := os.environ.get("MERGELINE_COMMIT", "")):
        return {}
    found = re.fullmatch(r"([0-9a-f]{40}|[0-9a-f]{64})(-dirty)?", given)
    if found is None:
        log.warning("MERGELINE_COMMIT is %r, which is no full commit; the run is recorded without one", given)
        return {}
    return {COMMIT: found[1], DIRTY: str(bool(found[2])).lower()}


def package_versions() -> dict[str, str]:
    """Name -> version, with the build, of what computes and is installed."""
    found = {name: installed(name) for name in (*COMPUTING, *EXPORTING)}
    return {name: version for name, version in found.items() if version != "absent"}


def machine_facts() -> dict[str, str]:
    """What a result should not depend on, but might."""
    return {"python": platform.python_version(), "platform": platform.platform(), "processor": _processor()}


def plan_digest(plan: Mapping[str, Any]) -> str:
    """The sha256 of a plan's fields, whatever their order."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


# --- git -------------------------------------------------------------------------------------------------------------


def head(root: Path) -> str | None:
    """The commit that is checked out; None without git, a repository or a commit."""
    return _git(root, "rev-parse", "--verify", "--quiet", "HEAD")


def changes(root: Path, besides: Iterable[Path] = ()) -> list[str]:
    """Files that differ from the commit, and Python files that it does not have; less those below `besides`."""
    own = [path.resolve() for path in besides]
    top = Path(_git(root, "rev-parse", "--show-toplevel") or root)
    lines = (_git(root, "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames") or "").split("\0")
    found = [(line[:2], line[3:]) for line in lines if line]
    return [
        name
        for state, name in found
        if (state != "??" or name.endswith(".py"))
        and not any((top / name).resolve().is_relative_to(folder) for folder in own)
    ]


def has_commit(root: Path, commit: str) -> bool:
    """Whether a repository holds a commit, on a branch or not (DVC's experiments are on none)."""
    return _git(root, "cat-file", "-e", f"{commit}^{{commit}}") is not None


def clone_at(root: Path, commit: str, folder: Path) -> None:
    """A fresh clone of a commit in `folder`; InputError where git makes none. Objects are shared with the original."""
    for command in (
        ["clone", "--quiet", "--shared", "--no-checkout", str(root), str(folder)],
        ["-C", str(folder), "-c", "advice.detachedHead=false", "checkout", "--quiet", commit],
    ):
        done = subprocess.run(["git", *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise InputError(f"git cannot check out {commit}: {done.stderr.strip()}")


def _git(root: Path, *arguments: str) -> str | None:
    """What git says; None where it fails or is missing."""
    try:
        command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip("\n") if done.returncode == 0 else None


# --- DVC -------------------------------------------------------------------------------------------------------------


def dvc_md5(path: Path) -> str:
    """The digest by which dvc.lock names a file or, with the end .dir, a folder."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    files = {file.relative_to(path).as_posix(): dvc_md5(file) for file in path.rglob("*") if file.is_file()}
    listing = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def locked_md5(root: Path, path: Path) -> str | None:
    """What dvc.lock says of an out of any stage; None where it has none of that name."""
    try:
        lock = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))
        outs = [out for stage in lock["stages"].values() for out in stage.get("outs", ())]
        named = os.path.relpath(path.resolve(), root.resolve())
        return next((str(out["md5"]) for out in outs if out["path"] == Path(named).as_posix()), None)
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return None


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
