"""Checkpoints of many files: folders, repositories of the hub, indexes on a web server, files of unknown name."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import fsspec
import huggingface_hub.constants as hub_constants
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from modelsite import COMMIT, Site

from mergeline.checkpoints.files import checkpoint_files, digest_of_files
from mergeline.checkpoints.folders import fetch_checkpoint
from mergeline.checkpoints.licence import licence_of
from mergeline.checkpoints.readers import open_checkpoint
from mergeline.checkpoints.sources import TransientError
from mergeline.checkpoints.writer import write_checkpoint
from mergeline.errors import InputError

STATE = {"a": torch.arange(3000.0), "b": torch.arange(4000.0), "c": torch.arange(5000.0)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A sharded model with a config, and with files that are no part of it."""
    folder = tmp_path / "site" / "model"
    write_checkpoint(folder, STATE, max_shard_size=20_000)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.model").write_bytes(b"pieces")
    (folder / "README.md").write_text("# Model")
    (folder / "optimizer.pt").write_bytes(b"not wanted")
    return folder


WANTED = [
    "config.json",
    *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
    "model.safetensors.index.json",
    "tokenizer.model",
]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Site(tmp_path / "site") as running:
        yield running


@pytest.fixture
def hub(site: Site, model: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The model as a repository of a hub on the loopback."""
    place = site.root / "org" / "repo" / "resolve" / COMMIT
    place.parent.mkdir(parents=True)
    model.rename(place)
    monkeypatch.setattr(hub_constants, "ENDPOINT", site.url)
    monkeypatch.setattr(
        hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", site.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    return site


def assert_is_the_model(got: Path, wanted: list[str] = WANTED, state: dict[str, torch.Tensor] = STATE) -> None:
    assert sorted(path.name for path in got.iterdir()) == wanted
    reader = open_checkpoint(got)
    assert all(torch.equal(reader[name], tensor) for name, tensor in state.items())


def left_over(destination: Path) -> list[str]:
    return [path.name for path in destination.parent.iterdir() if path.name.startswith(f".{destination.name}.part")]


def pin_of(folder: Path, names: list[str] = WANTED) -> str:
    return digest_of_files({name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names})


# -- local folders and file systems ------------------------------------------------------------------------------------


def test_of_a_local_folder_come_the_weights_and_their_companions(model: Path, tmp_path: Path) -> None:
    for i, uri in enumerate([str(model), model.as_uri(), str(model / "model.safetensors.index.json")]):
        assert_is_the_model(fetch_checkpoint(uri, tmp_path / "new" / str(i), sha256=pin_of(model)))
        assert left_over(tmp_path / "new" / str(i)) == []
    assert sorted(checkpoint_files(model)) == WANTED
    assert (model / "README.md").exists()


def test_the_pin_of_a_folder_is_what_sha256sum_says_of_its_files(tmp_path: Path) -> None:
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("b", "a")}
    text = f"{digests['a']}  a\n{digests['b']}  b\n"
    assert digest_of_files(digests) == hashlib.sha256(text.encode()).hexdigest()


def test_a_folder_with_links_is_read_through_them(model: Path, tmp_path: Path) -> None:
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for path in model.iterdir():
        (linked / path.name).symlink_to(path)
    got = fetch_checkpoint(str(linked), tmp_path / "copy")
    assert_is_the_model(got)
    assert not any(path.is_symlink() for path in got.iterdir())


def test_a_folder_with_one_file_of_weights_and_a_pin_of_that_file(tmp_path: Path) -> None:
    manifest = write_checkpoint(tmp_path / "model", STATE)
    got = fetch_checkpoint(str(tmp_path / "model"), tmp_path / "copy", sha256=manifest.sha256)
    assert_is_the_model(got, ["model.safetensors"])


def test_a_wrong_pin_leaves_nothing_behind(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{model}: has sha256 {pin_of(model)}, expected {'0' * 64}"):
        fetch_checkpoint(str(model), tmp_path / "copy", sha256="0" * 64)
    assert not (tmp_path / "copy").exists() and left_over(tmp_path / "copy") == []


def test_the_limit_counts_all_files(model: Path, tmp_path: Path) -> None:
    total = sum((model / name).stat().st_size for name in WANTED)
    fetch_checkpoint(str(model), tmp_path / "copy", max_bytes=total)
    with pytest.raises(InputError, match=f"has {total} bytes or more, {total - 1} are allowed"):
        fetch_checkpoint(str(model), tmp_path / "other", max_bytes=total - 1)
    assert not (tmp_path / "other").exists() and left_over(tmp_path / "other") == []


def test_progress_counts_all_files(model: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    fetch_checkpoint(str(model), tmp_path / "copy", progress=lambda done, _: seen.append(done))
    assert max(seen) == sum((model / name).stat().st_size for name in WANTED)


def test_a_destination_that_is_there_is_replaced(model: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "old.json").touch()
    assert_is_the_model(fetch_checkpoint(str(model), tmp_path / "copy"))


def test_a_folder_without_weights_or_without_a_shard_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds no \.safetensors.* or index; name a checkpoint file"):
        fetch_checkpoint(str(tmp_path / "empty"), tmp_path / "copy")
    (model / WANTED[2]).unlink()
    with pytest.raises(InputError, match=f"model: the shard {WANTED[2]} is missing"):
        fetch_checkpoint(str(model), tmp_path / "copy")
    with pytest.raises(InputError, match=f"index.json: the shard {WANTED[2]} is missing"):
        checkpoint_files(model)


def test_a_folder_of_an_fsspec_file_system(model: Path, tmp_path: Path) -> None:
    memory: MemoryFileSystem = fsspec.filesystem("memory")
    memory.store.clear()
    for path in model.iterdir():
        memory.pipe(f"/zoo/model/{path.name}", path.read_bytes())
    for i, end in enumerate(["", "/", "/model.safetensors.index.json"]):
        assert_is_the_model(fetch_checkpoint(f"memory://zoo/model{end}", tmp_path / str(i), sha256=pin_of(model)))
    got = fetch_checkpoint("memory://zoo/model/model-00001-of-00003.safetensors", tmp_path / "one")
    assert got == tmp_path / "one" / "model-00001-of-00003.safetensors"
    with pytest.raises(InputError, match="memory://zoo/modle: there is no such file"):
        fetch_checkpoint("memory://zoo/modle", tmp_path / "other")
    memory.store.clear()


# -- a web server ------------------------------------------------------------------------------------------------------


def test_an_index_on_a_web_server_brings_its_shards_and_companions(site: Site, model: Path, tmp_path: Path) -> None:
    url = f"{site.url}/model/model.safetensors.index.json?token=s3cret"
    got = fetch_checkpoint(url, tmp_path / "copy", sha256=pin_of(model))
    assert_is_the_model(got)
    assert {parse_qs(urlsplit(path).query)["token"][0] for path in site.asked} == {"s3cret"}


def test_pages_instead_of_companions_are_left_out(site: Site, model: Path, tmp_path: Path) -> None:
    site.page = True
    (model / "tokenizer.model").unlink()
    assert_is_the_model(
        fetch_checkpoint(f"{site.url}/model/model.safetensors.index.json", tmp_path / "copy"), WANTED[:-1]
    )


def test_a_missing_shard_on_a_web_server_is_named(site: Site, model: Path, tmp_path: Path) -> None:
    (model / WANTED[3]).unlink()
    with pytest.raises(InputError, match=rf"http://.*/{WANTED[3]}: the server answers 404"):
        fetch_checkpoint(f"{site.url}/model/model.safetensors.index.json", tmp_path / "copy")
    assert left_over(tmp_path / "copy") == []


def test_after_a_failure_finished_files_do_not_travel_again(site: Site, model: Path, tmp_path: Path) -> None:
    url = f"{site.url}/model/model.safetensors.index.json"
    site.failing[WANTED[2]] = 503
    with pytest.raises(TransientError, match=rf"{WANTED[2]}: the server answers 503"):
        fetch_checkpoint(url, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    part = tmp_path / ".copy.part"
    before = {path.name: path.stat().st_ino for path in part.glob("model-*.safetensors")}
    assert sorted(before) == [WANTED[1], WANTED[3]]
    site.failing.clear()
    got = fetch_checkpoint(url, tmp_path / "copy", sha256=pin_of(model))
    assert_is_the_model(got)
    assert {name: (got / name).stat().st_ino for name in before} == before


def test_a_file_that_changed_between_two_attempts_travels_again(site: Site, model: Path, tmp_path: Path) -> None:
    url = f"{site.url}/model/model.safetensors.index.json"
    site.failing[WANTED[2]] = 503
    with pytest.raises(TransientError):
        fetch_checkpoint(url, tmp_path / "copy")
    site.failing.clear()
    changed = {name: tensor + 1 for name, tensor in STATE.items()}
    write_checkpoint(model, changed, max_shard_size=20_000)
    for path in model.iterdir():
        os.utime(path, (1e9, 1e9))
    assert_is_the_model(fetch_checkpoint(url, tmp_path / "copy"), state=changed)


@pytest.mark.parametrize("query", ["?id=3", ""])
def test_a_file_without_a_suffix_is_recognised_by_its_content(
    site: Site, model: Path, tmp_path: Path, query: str
) -> None:
    write_checkpoint(site.root / "one.safetensors", STATE)
    torch.save(STATE, site.root / "two")
    torch.save(STATE, site.root / "three", _use_new_zipfile_serialization=False)
    (site.root / "one.safetensors").rename(site.root / "one")
    for name, suffix in [("one", ".safetensors"), ("two", ".pt"), ("three", ".pt")]:
        digest = hashlib.sha256((site.root / name).read_bytes()).hexdigest()
        got = fetch_checkpoint(f"{site.url}/{name}{query}", tmp_path / name, sha256=digest)
        assert got == tmp_path / name / f"model{suffix}"
        assert torch.equal(open_checkpoint(got)["a"], STATE["a"])
        assert list(got.parent.iterdir()) == [got]


def test_an_index_of_another_name_is_recognised_by_its_content(site: Site, model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors.index.json").rename(model / "listing")
    assert_is_the_model(fetch_checkpoint(f"{site.url}/model/listing", tmp_path / "copy"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>Sign in</html>", "is a web page"),
        (b'{"error": 1}', "is JSON text"),
        (b"text", "is neither safetensors"),
    ],
)
def test_what_is_no_checkpoint_is_refused(site: Site, tmp_path: Path, content: bytes, message: str) -> None:
    site.root.mkdir(exist_ok=True)
    (site.root / "thing").write_bytes(content)
    with pytest.raises(InputError, match=f"http://.*/thing: {message}"):
        fetch_checkpoint(f"{site.url}/thing", tmp_path / "copy")
    assert left_over(tmp_path / "copy") == []


def test_a_file_with_a_suffix_keeps_its_name(site: Site, tmp_path: Path) -> None:
    manifest = write_checkpoint(site.root / "model a.safetensors", STATE)
    url = f"{site.url}/model%20a.safetensors?download=true"
    got = fetch_checkpoint(url, tmp_path / "copy", sha256=manifest.sha256)
    assert got == tmp_path / "copy" / "model_a.safetensors"
    with pytest.raises(InputError, match=r"model%20a\.safetensors: has sha256 .* expected 0000"):
        fetch_checkpoint(url, tmp_path / "other", sha256="0" * 64)


# -- the hub -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "/", "@main", "@main/model.safetensors.index.json"])
def test_a_repository_is_fetched_from_one_commit_and_verified(hub: Site, tmp_path: Path, end: str) -> None:
    assert_is_the_model(fetch_checkpoint(f"hf://org/repo{end}", tmp_path / "copy"))
    assert hub.asked[0].startswith("/api/models/org/repo/revision/main?")
    assert all(path.startswith(f"/org/repo/resolve/{COMMIT}/") for path in hub.asked[1:])
    assert [name for name in hub.files_asked() if name in WANTED] == WANTED


def test_a_file_that_is_not_what_the_hub_says_is_refused(hub: Site, tmp_path: Path) -> None:
    honest = hub.repository()
    path = hub.root / "org" / "repo" / "resolve" / COMMIT / WANTED[2]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    hub.repository = lambda: honest  # type: ignore[method-assign]
    with pytest.raises(InputError, match=rf"hf://org/repo@{COMMIT}/{WANTED[2]}: has sha256"):
        fetch_checkpoint("hf://org/repo", tmp_path / "copy")


def test_a_folder_of_a_repository(hub: Site, tmp_path: Path) -> None:
    folder = hub.root / "org" / "repo" / "resolve" / COMMIT / "adapters" / "one"
    folder.mkdir(parents=True)
    write_checkpoint(folder / "adapter_model.safetensors", STATE)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for i, end in enumerate(["", "/"]):
        got = fetch_checkpoint(f"hf://org/repo@main/adapters/one{end}", tmp_path / str(i))
        assert_is_the_model(got, ["adapter_config.json", "adapter_model.safetensors"])
    with pytest.raises(InputError, match="hf://org/repo/adapters/two: the repository has no folder 'adapters/two/'"):
        fetch_checkpoint("hf://org/repo/adapters/two", tmp_path / "two")


def test_a_hub_that_is_none_is_named(hub: Site, tmp_path: Path) -> None:
    hub.repository = lambda: {"error": "what?"}  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"hf://org/repo: http://.* answers as no Hugging Face hub does; check HF_"):
        fetch_checkpoint("hf://org/repo", tmp_path / "copy")


@pytest.mark.parametrize("uri", ["hf://repo", "hf://", "hf://org/repo@/x", "hf://org/repo/../x"])
def test_an_address_of_no_repository_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not of the form hf://organisation/repository@revision/folder"):
        fetch_checkpoint(uri, tmp_path / "copy")


def test_offline_a_cached_repository_is_taken(hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache" / "models--org--repo"
    (cache / "snapshots").mkdir(parents=True)
    (hub.root / "org" / "repo" / "resolve" / COMMIT).rename(cache / "snapshots" / COMMIT)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert_is_the_model(fetch_checkpoint("hf://org/repo", tmp_path / "copy"))
    with pytest.raises(InputError, match=r"org/other: is not in the hub's cache.*hf download org/other --rev"):
        fetch_checkpoint("hf://org/other", tmp_path / "other")
    assert hub.asked == []


def test_a_repository_names_its_licence(hub: Site) -> None:
    folder = hub.root / "org/repo/resolve/branch/of/mine"
    folder.mkdir(parents=True)
    assert licence_of("hf://org/repo@branch%2Fof%2Fmine/model.safetensors") == "unknown"
    (folder / "LICENSE").write_text("MIT License")
    assert licence_of("hf://org/repo@branch%2Fof%2Fmine/model.safetensors") == "mit"
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert licence_of("hf://org/repo@branch%2Fof%2Fmine") == "apache-2.0"
    hub.failing["README.md"] = 503
    assert licence_of("hf://org/repo@branch%2Fof%2Fmine") == "unknown"
