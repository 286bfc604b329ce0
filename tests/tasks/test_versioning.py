"""What git and DVC know of a result: commits, changes, digests as dvc.lock has them, fresh clones."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from flows import rebuild
from mergeline.errors import InputError
from mergeline.evaluation.sources import write_parquet
from mergeline.plan import Plan
from mergeline.plan_file import load_plan
from tasks.rebuilding import bring_inputs, unlike, write_plan
from tasks.run_lookup import RecordedRun
from tasks.store import digest, file_digests, put_directory, take_file
from tasks.versioning import COMMIT, DIRTY, MD5, changes, clone_at, dvc_md5, has_commit, head, locked_md5, version_tags

ROOT = Path(__file__).parents[2]


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "test")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "test@localhost")
    folder = tmp_path / "project"
    (folder / "data/merged").mkdir(parents=True)
    for name in ("code.py", "params.yaml", "dvc.lock", "data/merged/metrics.json", "data/a.safetensors"):
        (folder / name).write_text(name)
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message=one")
    return folder


def test_changes_are_what_another_clone_would_lack(repository: Path) -> None:
    own = [repository / "data/merged", repository / "dvc.lock"]
    assert changes(repository, own) == []
    for name in ("dvc.lock", "data/merged/metrics.json", "params.yaml"):
        (repository / name).write_text("other")
    (repository / "scratch.txt").touch()
    assert changes(repository, own) == ["params.yaml"]
    (repository / "a folder").mkdir()
    (repository / "a folder/new ä.py").touch()
    (repository / "code.py").unlink()
    assert set(changes(repository, own)) == {"params.yaml", "code.py", "a folder/new ä.py"}


def test_a_folder_without_git_has_no_commit(tmp_path: Path) -> None:
    assert head(tmp_path) is None
    assert changes(tmp_path) == []


def commit_tags(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("MERGELINE_ROOT", str(folder))
    tags = version_tags(Plan(name="p", checkpoints=[{"name": name, "uri": name} for name in "ab"]), "0" * 64, [])
    return {name: tags[name] for name in (COMMIT, DIRTY) if name in tags}


@pytest.mark.parametrize(("given", "dirty"), [("a" * 40, "false"), ("a" * 40 + "-dirty", "true")])
def test_an_image_says_which_commit_it_was_built_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, dirty: str
) -> None:
    monkeypatch.setenv("MERGELINE_COMMIT", given)
    assert commit_tags(tmp_path, monkeypatch) == {COMMIT: "a" * 40, DIRTY: dirty}


def test_a_repository_knows_better(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGELINE_COMMIT", "a" * 40 + "-dirty")
    assert commit_tags(repository, monkeypatch) == {COMMIT: head(repository), DIRTY: "false"}


@pytest.mark.parametrize("given", ["", "main", "a" * 7, "v1.0"])
def test_what_is_no_commit_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, given: str
) -> None:
    monkeypatch.setenv("MERGELINE_COMMIT", given)
    assert commit_tags(tmp_path, monkeypatch) == {}
    assert ("which is no full commit" in caplog.text) == bool(given)


def test_a_clone_has_the_files_of_a_commit_that_is_on_no_branch(repository: Path, tmp_path: Path) -> None:
    (repository / "code.py").write_text("two")
    git(repository, "commit", "--quiet", "--all", "--message=two")
    second = git(repository, "rev-parse", "HEAD")
    git(repository, "reset", "--quiet", "--hard", "HEAD~")
    assert head(repository) != second
    assert has_commit(repository, second)
    assert not has_commit(repository, "f" * 40)
    clone_at(repository, second, tmp_path / "clone")
    assert (tmp_path / "clone/code.py").read_text() == "two"
    assert (repository / "code.py").read_text() == "code.py"
    with pytest.raises(InputError, match="git cannot check out ffff"):
        clone_at(repository, "f" * 40, tmp_path / "other")


@pytest.fixture
def tracked(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file and a folder that DVC has in dvc.lock, with names that sort differently as paths and as text."""
    from dvc.cli import main

    for name in ("DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR", "DVC_SITE_CACHE_DIR"):
        monkeypatch.setenv(name, str(repository.parent / name))
    monkeypatch.chdir(repository)
    (repository / "dvc.lock").unlink()
    (repository / "params.yaml").unlink()
    names = ["a/b", "a.b", "a-b", "a/c/d", "ä"]
    make = "; ".join(f"mkdir -p $(dirname out/{name}); echo {name} > out/{name}" for name in names)
    (repository / "dvc.yaml").write_text(f"stages:\n  make:\n    cmd: {make}; echo x > one\n    outs: [out, one]\n")
    assert main(["init", "--quiet"]) == 0
    assert main(["repro", "--quiet"]) == 0
    return repository


def test_digests_are_those_of_dvc(tracked: Path) -> None:
    for name in ("out", "one"):
        assert dvc_md5(tracked / name) == locked_md5(tracked, tracked / name)
        assert locked_md5(tracked, Path(name)) == locked_md5(tracked, tracked / name)
    assert dvc_md5(tracked / "out").endswith(".dir")
    assert locked_md5(tracked, tracked / "other") is None
    (tracked / "dvc.lock").write_text("[]")
    assert locked_md5(tracked, tracked / "one") is None


def run_that_read(*sources: tuple[str, str]) -> RecordedRun:
    inputs = [{"kind": "checkpoint", "name": name, "source": name, "sha256": sha256} for name, sha256 in sources]
    return RecordedRun(run_id="1", tags={}, lineage={"inputs": inputs})


def test_inputs_come_from_the_working_tree_or_the_store(repository: Path, tmp_path: Path, state: Path) -> None:
    """Where the commit has them not: they are ignored by git, or were another version."""
    clone_at(repository, "HEAD", tmp_path / "clone")
    committed = digest(repository / "data/a.safetensors")
    (repository / "data/a.safetensors").write_text("newer")
    (repository / "data/untracked.safetensors").write_text("untracked")
    (repository / "gone.safetensors").write_text("gone")
    gone = take_file(repository / "gone.safetensors", "checkpoint").sha256
    (repository / "gone.safetensors").unlink()
    untracked = digest(repository / "data/untracked.safetensors")
    sources = [("data/a.safetensors", committed), ("data/untracked.safetensors", untracked), ("gone.safetensors", gone)]
    bring_inputs(run_that_read(*sources, ("hf://org/repo@main", "0" * 64)), repository, tmp_path / "clone")
    for name, sha256 in sources:
        assert digest(tmp_path / "clone" / name) == sha256


@pytest.mark.parametrize("source", ["sharded", "sharded/model.safetensors.index.json"])
def test_a_folder_comes_back_from_the_store(repository: Path, tmp_path: Path, state: Path, source: str) -> None:
    """It is gone from the working tree, and no commit has it."""
    content = {"model.safetensors.index.json": "{}", "model-1.safetensors": "one", "config.json": "two"}

    def fill(folder: Path) -> None:
        for name, text in content.items():
            (folder / name).write_text(text)

    ref = put_directory(fill, "checkpoint")
    entry = {"kind": "checkpoint", "name": "a", "source": source, "sha256": ref.sha256}
    run = RecordedRun(run_id="1", tags={}, lineage={"inputs": [entry | {"files": file_digests(ref, "")}]})
    clone = tmp_path / "clone"
    clone_at(repository, "HEAD", clone)
    bring_inputs(run, repository, clone)
    assert {path.name: path.read_text() for path in (clone / "sharded").iterdir()} == content
    (ref.path / "config.json").chmod(0o644)
    (ref.path / "config.json").write_text("altered")
    (clone / "sharded/config.json").unlink()
    with pytest.raises(InputError, match=r"sharded/config\.json is neither in the commit, nor in"):
        bring_inputs(run, repository, clone)


@pytest.mark.parametrize("option", ["--run", "--of"])
def test_an_mlflow_that_does_not_answer_is_not_a_run_that_is_missing(
    repository: Path, state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MERGELINE_ROOT", str(repository))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but it does not listen
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{taken.getsockname()[1]}")
        named = str(repository / "code.py") if option == "--of" else "0" * 32
        monkeypatch.setattr("sys.argv", ["rebuild", option, named])
        assert rebuild.main() == 1
    said = capsys.readouterr().err
    assert "MLflow does not answer" in said
    assert "no run" not in said
    assert said.splitlines()[1:] == ["the same command again begins anew"]


def test_every_input_that_is_missing_or_another_is_named(repository: Path, tmp_path: Path, state: Path) -> None:
    clone_at(repository, "HEAD", tmp_path / "clone")
    (tmp_path / "outside.safetensors").write_text("outside")
    sources = ["data/a.safetensors", "data/none.safetensors", str(tmp_path / "outside.safetensors")]
    with pytest.raises(InputError) as fault:
        bring_inputs(run_that_read(*((name, "0" * 64) for name in sources)), repository, tmp_path / "clone")
    first, second, third, advice = str(fault.value).splitlines()
    assert first.startswith(
        f"checkpoint {sources[0]}: {sources[0]} has sha256 {digest(repository / sources[0])}; the run"
    )
    assert "data/none.safetensors is neither in the commit, nor in the working tree or the store" in second
    assert f"outside.safetensors has sha256 {digest(tmp_path / 'outside.safetensors')}; the run read 0000" in third
    assert "dvc pull" in advice


@pytest.mark.parametrize("kind", ["pictures", "csv"])
def test_data_that_is_converted_is_compared_as_what_it_comes_to(
    repository: Path, tmp_path: Path, state: Path, kind: str
) -> None:
    """A folder of pictures, or a CSV file, in the working tree and not in the commit."""
    folder = repository / "data/set"
    if kind == "csv":
        folder.mkdir()
        split = folder / "test.csv"
        split.write_text("text,about\nchess,games\nmail,net\n")
        (folder / "train.csv").write_text("text,about\nships,a third class\n")
    else:
        split = folder / "test"
        for split_and_class in ("test/cat", "train/ant"):
            (folder / split_and_class).mkdir(parents=True)
            Image.new("L", (2, 2)).save(folder / split_and_class / "0.png")
    write_parquet(split, tmp_path / "as.parquet", "about")
    source = str(split.relative_to(repository))
    entry = {"kind": "dataset", "name": source, "source": source, "sha256": digest(tmp_path / "as.parquet")}
    plan = {"datasets": {"set": {"path": "data/set", "label_column": "about"}}}
    run = RecordedRun(run_id="1", tags={}, lineage={"inputs": [entry], "plan": plan})
    clone_at(repository, "HEAD", tmp_path / "clone")
    bring_inputs(run, repository, tmp_path / "clone")
    write_parquet(tmp_path / "clone" / source, tmp_path / "again.parquet", "about")
    assert digest(tmp_path / "again.parquet") == entry["sha256"], "with the classes of the splits beside it"

    other = RecordedRun(run_id="1", tags={}, lineage={"inputs": [entry | {"sha256": "0" * 64}], "plan": plan})
    with pytest.raises(InputError, match=f"{source} comes to sha256 {entry['sha256']}; the run read 0000"):
        bring_inputs(other, repository, tmp_path / "clone")
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "clone/data/set")
    with pytest.raises(InputError, match=f"{source} is neither in the commit nor in the working tree; the run read"):
        bring_inputs(run, repository, tmp_path / "clone")


def test_the_plan_of_a_rebuild_has_no_data_of_a_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The controls of a calibration are not measured again, and data for them is refused without them."""
    monkeypatch.chdir(ROOT)
    other = "calibrate={ridge: 0.5, control_data: {dataset: fashion, where: {domain: half}}}"
    plan = load_plan("params.yaml", [other]).model_dump(mode="json")
    read = [{"kind": "checkpoint", "name": one["name"], "sha256": one["sha256"], "source": one["uri"]}
            for one in plan["checkpoints"]]  # fmt: skip
    path = write_plan(RecordedRun(run_id="1", tags={}, lineage={"plan": plan, "inputs": read}), tmp_path)
    written = load_plan(path)
    assert written.evaluation.compare == ["task_models", "task_models_reset"]
    assert written.calibrate is not None and (written.calibrate.ridge, written.calibrate.control_data) == (0.5, None)


def test_heads_of_tasks_are_compared_as_the_model_is(tmp_path: Path) -> None:
    model, own = tmp_path / "model.safetensors", tmp_path / "heads" / "tops.safetensors"
    own.parent.mkdir()
    for file in (model, own):
        file.write_text(file.name)
    run = RecordedRun(
        run_id="1",
        tags={f"{MD5}heads": dvc_md5(own.parent), f"{MD5}report.md": "0"},
        lineage={"files": {model.name: digest(model)}},
    )
    assert unlike(run, tmp_path) == (["model.safetensors", "heads"], [])
    own.write_text("another")
    same, [other] = unlike(run, tmp_path)
    assert same == ["model.safetensors"] and other.startswith("heads: md5 ")
