"""DVC around the main job, and runs made again: in a clone of the last commit, with a small plan of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from flows import rebuild
from tasks.versioning import CHANGES, CODE, COMMIT, DIRTY, MD5

ROOT = Path(__file__).resolve().parent.parent.parent
PUBLISHED = "data/merged"

pytestmark = pytest.mark.flow


def git(folder, *arguments):
    return subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def dvc(*arguments):
    """A command of DVC runs in this process, the flow in one of its own."""
    from dvc.cli import main

    assert main([*map(str, arguments)]) == 0, f"dvc {arguments}"


def said_by(*arguments):
    """What a command of DVC prints, in a process of its own: in this one it prints past whoever listens."""
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def small_plan(folder):
    """Two models of one base, two tasks, beside their own models, one program."""
    path = folder / "params.yaml"
    plan = yaml.safe_load(path.read_text())
    plan["checkpoints"] = [entry for entry in plan["checkpoints"] if "base-a" in (entry["name"], entry.get("base"))]
    plan |= {"tasks": plan["tasks"][:2], "evaluation": {"compare": ["task_models"]}, "export": ["torch"]}
    path.write_text(yaml.safe_dump(plan, sort_keys=False))


@pytest.fixture(scope="module")
def project(tmp_path_factory, prefect_server):
    """A clone with a small plan, where DVC and git read no settings of this machine, and a running Prefect server."""
    from prefect.settings import PREFECT_API_URL

    folder, state = tmp_path_factory.mktemp("user") / "project", tmp_path_factory.mktemp("state")
    variables = {
        name: str(state / name) for name in ("DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR", "DVC_SITE_CACHE_DIR")
    }
    variables |= {f"GIT_{role}_NAME": "test" for role in ("AUTHOR", "COMMITTER")}
    variables |= {f"GIT_{role}_EMAIL": "test@localhost" for role in ("AUTHOR", "COMMITTER")}
    variables |= {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "MERGELINE_STATE": str(state),
        "MLFLOW_TRACKING_URI": f"sqlite:///{state / '.mlflow' / 'mlflow.db'}",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.delenv("PYTHONPATH", raising=False)
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        patch.chdir(folder)
        small_plan(folder)
        git(folder, "commit", "--quiet", "--all", "--message=plan")
        yield folder


@pytest.fixture(scope="module")
def made(project):
    """The result of `dvc repro`, committed; returns the commit that it was made from."""
    commit = git(project, "rev-parse", "HEAD")
    dvc("repro", "--quiet", "merge")
    git(project, "commit", "--quiet", "--all", "--message=result")
    return commit


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def locked(folder):
    outs = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]["merge"]["outs"]
    return {out["path"]: out["md5"] for out in outs}


def client():
    return MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])


def run_of(capsys, path):
    """The id of the latest run that published a file, as the command finds it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["rebuild", "--of", str(path)])
        assert rebuild.main() == 0
    return capsys.readouterr().out.split()[1]


def test_the_stage_makes_what_the_project_says_and_leaves_git_clean(project, made):
    assert {*locked(project)} == {
        f"{PUBLISHED}/{name}"
        for name in (
            *("model.safetensors", "config.json", "README.md", "lineage.json", "report.md", "report.html"),
            *("chart.png", "comparison.json", "metrics.json", "normalization", "alignment", "coefficients", "exports"),
        )
    }
    assert git(project, "status", "--porcelain") == ""
    assert (project / PUBLISHED / "exports/model.pt2").is_file()


def test_made_again_from_nothing_the_lock_has_the_same_bytes(project, made, tmp_path, monkeypatch):
    lock, before = (project / "dvc.lock").read_bytes(), contents(project / PUBLISHED)
    assert "up to date" in said_by("repro", "merge")
    monkeypatch.setenv("MERGELINE_STATE", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    dvc("repro", "--quiet", "--force", "--single-item", "merge")
    assert (project / "dvc.lock").read_bytes() == lock
    assert contents(project / PUBLISHED) == before


def test_the_run_names_the_commit_and_the_digests_of_the_lock_and_is_found_by_them(project, made, capsys):
    run = client().get_run(run_of(capsys, f"{PUBLISHED}/model.safetensors"))
    assert run.data.tags[COMMIT] == made
    assert run.data.tags[DIRTY] == "false"
    named = {f"{PUBLISHED}/{tag.removeprefix(MD5)}": md5 for tag, md5 in run.data.tags.items() if tag.startswith(MD5)}
    assert named == locked(project)
    for name in ("alignment", "chart.png", ""):
        assert run_of(capsys, f"{PUBLISHED}/{name}") == run.info.run_id
    shutil.move(PUBLISHED, "aside")
    try:
        assert run_of(capsys, PUBLISHED) == run.info.run_id, "by dvc.lock where the result is not here"
    finally:
        shutil.rmtree(PUBLISHED, ignore_errors=True)
        shutil.move("aside", PUBLISHED)


@pytest.fixture(scope="module")
def bucket():
    """An S3 server on this machine with an empty bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    url, keys = f"http://{host}:{port}", {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys).create_bucket(Bucket="models")
    yield url
    server.stop()


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_result_is_pushed_and_pulled(project, made, kind, tmp_path, request, monkeypatch):
    if kind == "s3":
        for name, value in {
            "ACCESS_KEY_ID": "test",
            "SECRET_ACCESS_KEY": "test",
            "DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        dvc("remote", "add", "--local", kind, "s3://models/dvc")
        dvc("remote", "modify", "--local", kind, "endpointurl", request.getfixturevalue("bucket"))
    else:
        dvc("remote", "add", "--local", kind, tmp_path / "remote")
    before = contents(project / PUBLISHED)
    dvc("push", "--quiet", "--remote", kind, "merge")
    for name in locked(project):
        if name != f"{PUBLISHED}/metrics.json":  # lies in git
            path = project / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(project / ".dvc/cache")
    dvc("pull", "--quiet", "--remote", kind, "merge")
    assert contents(project / PUBLISHED) == before
    assert "up to date" in said_by("status", "merge")


@pytest.fixture(scope="module")
def experiments(project, made):
    """The same plan with other numbers: in the workspace, and in a copy."""
    dvc("exp", "run", "--quiet", "--name", "here", "--set-param", "merge.keep_ratio=0.2", "merge")
    dvc("exp", "run", "--quiet", "--temp", "--name", "aside", "--set-param", "merge.keep_ratio=0.1", "merge")


def test_experiments_are_listed_with_their_numbers(project, experiments):
    shown = json.loads(said_by("exp", "show", "--json"))
    found = {
        run["name"]: run["data"]["params"]["params.yaml"]["data"]["merge"]["keep_ratio"]
        for revision in shown
        for experiment in revision["experiments"] or ()
        for run in experiment["revs"]
    }
    assert found == {"here": 0.2, "aside": 0.1}


def test_what_changed_is_shown(project, experiments):
    changed = json.loads(said_by("params", "diff", "--json"))["params.yaml"]
    found = changed["merge.keep_ratio"]
    assert (found["old"], found["new"]) == (0.3, 0.2)
    measured = json.loads(said_by("metrics", "diff", "--json"))[f"{PUBLISHED}/metrics.json"]
    assert measured["mean"]["old"] != measured["mean"]["new"]


@pytest.fixture
def of_experiment(project, experiments, capsys):
    """The run of the experiment in the workspace, made with a plan that no commit of a branch has."""
    return run_of(capsys, f"{PUBLISHED}/model.safetensors")


def call(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["rebuild", *map(str, arguments)])
    return rebuild.main()


def test_a_run_is_made_again_in_a_fresh_clone(project, of_experiment, tmp_path, monkeypatch, capsys):
    expected = (project / PUBLISHED / "model.safetensors").read_bytes()
    git(project, "stash", "--quiet")  # the plan and the lock of the working tree play no part in it
    try:
        assert call(monkeypatch, "--run", of_experiment, "--into", tmp_path / "again") == 0
    finally:
        git(project, "stash", "pop", "--quiet")
    said = capsys.readouterr()
    assert (
        "the same to the last byte: model.safetensors, normalization, alignment, coefficients, metrics.json" in said.out
    )
    assert said.err == ""
    assert (tmp_path / "again/model.safetensors").read_bytes() == expected
    assert git(project, "worktree", "list").count("\n") == 0
    assert call(monkeypatch, "--run", of_experiment, "--into", tmp_path / "again") == 2
    assert "is not empty" in capsys.readouterr().err


def test_what_is_not_as_it_was_is_said(project, of_experiment, monkeypatch, capsys):
    """As if the run had been made with another torch and with code that was not committed."""
    tags = client().get_run(of_experiment).data.tags
    other = {"package.torch": "1.0", CODE: "0" * 64, DIRTY: "true", CHANGES: "mergeline/errors.py"}
    for name, value in other.items():
        client().set_tag(of_experiment, name, value)
    try:
        assert call(monkeypatch, "--run", of_experiment, "--check") == 1
        said = capsys.readouterr().err
        assert "not as it was: package torch: 1.0 then" in said
        assert "changes that were not committed: mergeline/errors.py (digest 0000000000000000 then" in said
        client().set_tag(of_experiment, COMMIT, "f" * 40)
        assert call(monkeypatch, "--run", of_experiment) == 2
        assert f"commit {'f' * 40} of run {of_experiment} is not in this repository" in capsys.readouterr().err
        client().delete_tag(of_experiment, COMMIT)
        assert call(monkeypatch, "--run", of_experiment) == 2
        assert "it was made outside a git repository" in capsys.readouterr().err
    finally:
        for name in (*other, COMMIT):
            if name in tags:
                client().set_tag(of_experiment, name, tags[name])
            else:
                client().delete_tag(of_experiment, name)


def test_a_run_or_a_file_that_nobody_knows(project, made, monkeypatch, capsys):
    assert call(monkeypatch, "--run", "0" * 32) == 2
    assert "has no run 0000" in capsys.readouterr().err
    assert call(monkeypatch, "--of", "params.yaml") == 2
    assert "no run in MLflow published params.yaml" in capsys.readouterr().err
    assert call(monkeypatch, "--of", "nothing") == 2
    assert "neither here nor in dvc.lock" in capsys.readouterr().err
