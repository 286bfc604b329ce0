"""Find the run that made a result, or make the result of a run again: `python -m flows.rebuild --help`."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from flows.command_line import exit_status
from mergeline.errors import InputError
from tasks._env import project_root
from tasks.rebuilding import bring_inputs, differences, run_plan, unlike, write_plan
from tasks.run_lookup import recorded_run, runs_that_published
from tasks.versioning import clone_at, dvc_md5, has_commit, locked_md5


def rebuild(run_id: str, into: Path | None, *, check: bool) -> int:
    """Check out the commit, take the recorded plan and inputs, run, compare; 0 where every byte is the same."""
    run, project = recorded_run(run_id), project_root()
    if into is not None and into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise InputError(f"--into {into}: is not empty; name a new folder")
    if not has_commit(project, run.commit):
        raise InputError(
            f"commit {run.commit} of run {run_id} is not in this repository; try: git fetch origin {run.commit}"
        )
    with TemporaryDirectory(prefix="rebuild-") as scratch:
        clone, state = Path(scratch) / "project", Path(scratch) / "state"
        clone_at(project, run.commit, clone)
        bring_inputs(run, project, clone)
        write_plan(run, clone)
        found = differences(run, clone, state)
        for difference in found:
            print(f"not as it was: {difference}", file=sys.stderr)
        if check:
            print("the commit and every local input are here" + ("" if found else ", and all is as it was"))
            return 1 if found else 0
        result = run_plan(clone, state)
        same, other = unlike(run, result)
        if into is not None:
            shutil.copytree(result, into, dirs_exist_ok=True)
    print(f"the same to the last byte: {', '.join(same) or 'nothing'}")
    for sentence in other:
        print(f"differs: {sentence}", file=sys.stderr)
    return 1 if other else 0


def find_run(path: Path) -> int:
    """Print the runs that published a file or folder: by its content, or where it is not here by dvc.lock."""
    root, lineage = project_root(), path / "lineage.json"  # which names a whole result
    named = lineage if lineage.is_file() or locked_md5(root, lineage) else path
    md5 = dvc_md5(named) if named.exists() else locked_md5(root, named)
    if md5 is None:
        raise InputError(f"{path} is neither here nor in dvc.lock")
    lines = runs_that_published(named.name, md5)
    if not lines:
        raise InputError(f"no run in MLflow published {named.name} with md5 {md5}")
    print("\n".join(lines))
    return 0


def main() -> int:
    """Exit status 0, 1 where something differs or MLflow does not answer, 2 where something is missing."""
    parser = argparse.ArgumentParser(prog="python -m flows.rebuild", description=__doc__.partition(":")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--of", type=Path, metavar="PATH", help="print the runs that published this file or folder")
    what.add_argument("--run", metavar="ID", help="make the model of this MLflow run again, and compare every byte")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="keep what was made here")
    parser.add_argument("--check", action="store_true", help="only say what is missing or not as it was")
    options = parser.parse_args()

    def work() -> int:
        return find_run(options.of) if options.of else rebuild(options.run, options.into, check=options.check)

    return exit_status(work, what="the rebuild", again="the same command again begins anew")


if __name__ == "__main__":
    sys.exit(main())
