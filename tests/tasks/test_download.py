"""The download stage: files and folders become artifacts, and local changes are noticed."""

from pathlib import Path

import pytest
import torch
from prefect import flow

from mergeline.checkpoints.writer import write_checkpoint
from mergeline.errors import InputError
from mergeline.plan import Checkpoint
from tasks.checkpoints import download_checkpoint, open_artifact, source_version
from tasks.store import ArtifactRef, store_directory

pytestmark = pytest.mark.usefixtures("prefect_server", "state")

STATE = {"a": torch.arange(3000.0), "b": torch.arange(4000.0)}
MANY = 10**9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", STATE, max_shard_size=12_000)
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model" / "README.md").write_text("# Model")
    return tmp_path / "model"


def download(uri: Path | str, sha256: str | None = None, max_bytes: int = MANY) -> ArtifactRef:
    spec = Checkpoint(name="one", uri=str(uri), sha256=sha256)

    @flow
    def run() -> ArtifactRef:
        return download_checkpoint("one", spec.uri, sha256, source_version(spec), max_bytes)

    return run()


def test_a_folder_becomes_one_artifact_named_by_its_files(folder: Path, tmp_path: Path) -> None:
    ref = download(folder)
    assert sorted(path.name for path in ref.path.iterdir()) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    reader = open_artifact(ref)
    assert reader.source == "one"
    with pytest.raises(InputError, match="one: has no tensor 'c'"):
        reader.read("c")
    assert all(torch.equal(reader[name], tensor) for name, tensor in STATE.items())
    (folder / "README.md").write_text("# Another text")
    assert download(folder.as_uri()) == download(folder / "model.safetensors.index.json") == ref
    folder.rename(tmp_path / "moved")
    assert download(tmp_path / "moved") == ref
    assert not any(path.is_dir() for path in (store_directory() / "incoming").iterdir())


def test_a_change_in_a_folder_is_noticed(folder: Path) -> None:
    spec = Checkpoint(name="one", uri=str(folder))
    version, ref = source_version(spec), download(folder)
    (folder / "README.md").write_text("# Another text")
    assert source_version(spec) == version
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    assert source_version(spec) != version
    assert download(folder) != ref


def test_a_file_without_a_suffix_becomes_a_file(folder: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "single.safetensors", STATE)
    (tmp_path / "single.safetensors").rename(tmp_path / "single")
    ref = download(tmp_path / "single")
    assert ref.path.is_file() and ref.suffix == ".safetensors"
    assert torch.equal(open_artifact(ref)["b"], STATE["b"])


def test_what_is_refused_leaves_nothing_behind(folder: Path) -> None:
    with pytest.raises(InputError, match="expected 0000"):
        download(folder, sha256="0" * 64)
    with pytest.raises(InputError, match="1000 are allowed"):
        download(folder, max_bytes=1000)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="is not a whole safetensors file"):
        download(folder)
    assert not any(path.is_dir() for path in (store_directory() / "incoming").iterdir())


@pytest.mark.parametrize("uri", [f"hf://org/repo@{'0' * 40}", f"hf://org/repo@{'0' * 40}/folder"])
def test_a_commit_is_a_version(uri: str) -> None:
    assert source_version(Checkpoint(name="one", uri=uri)) == uri
    branch = Checkpoint(name="one", uri="hf://org/repo@main")
    assert source_version(branch) != source_version(branch)
