"""Versions of registered models in a real MLflow store: made with a run, found by their addresses, fetched."""

import json
import logging
import os
import shutil
import socket

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from flows import clean_cache
from mergeline import write_checkpoint
from mergeline.errors import InputError
from mergeline.plan import Checkpoint, Plan
from tasks.checkpoints import download_checkpoint, source_version
from tasks.registered_weights import needed, tags_of
from tasks.registry import SHA256, fetch_model, locate
from tasks.store import digest, file_digests, put_directory, put_json, take_file
from tasks.tracking import Registration, Tracker
from tasks.usage import use_note
from tests.tasks.registered import register


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One state for all tests of this file: making a database takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("state")
        patch.setenv("MERGELINE_STATE", str(folder))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / '.mlflow' / 'mlflow.db'}")
        yield folder


@pytest.fixture
def client(home):
    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


@pytest.fixture
def model(request):
    """A registered model of the test's own."""
    return request.node.name[:100].replace("[", "-").replace("]", "")


def test_a_run_is_registered_as_the_candidate(client, model, tmp_path):
    runs = [register(None, tmp_path, 0.8, number=number, model=model) for number in (1, 2)]
    found = client.get_model_version_by_alias(model, "candidate")
    assert (str(found.version), found.run_id) == ("2", runs[1])
    assert found.tags[SHA256] == digest(tmp_path / "run-2" / "model" / "model.safetensors")
    assert client.get_model_version(model, "1").aliases == []


def test_a_run_that_is_delivered_late_does_not_take_the_alias(client, model, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert register(address, tmp_path, 0.8, number=1, model=model) is None
    register(None, tmp_path, 0.8, number=2, model=model)
    [delivered] = Tracker("digits").deliver_pending()
    assert str(client.get_model_version_by_alias(model, "candidate").version) == "1"
    late = client.get_model_version(model, "2")
    assert late.run_id == delivered
    path, promised = fetch_model(f"models:/{model}/2", tmp_path / "fetched", 10**6)
    assert load_file(path)["w"].tolist() == [1.0] * 4
    assert promised == digest(path)


def test_a_name_that_mlflow_refuses_costs_a_warning_and_not_the_run(client, tmp_path, caplog):
    run = register(None, tmp_path, 0.8, number=1, model="a/b")
    assert client.get_run(run).info.status == "FINISHED"
    assert "is recorded, but not registered as 'a/b'" in caplog.text


def test_addresses_stand_for_one_version(client, model, tmp_path):
    runs = [register(None, tmp_path, 0.8, number=number, model=model) for number in (1, 2)]
    by_alias, second = locate(f"models:/{model}@candidate"), locate(f"models:/{model}/2")
    assert by_alias == second
    assert by_alias.uri == f"models:/{model}/2"
    assert locate(f"models:/{model}/1").identity != second.identity
    assert locate(f"runs:/{runs[0]}/model").source == locate(f"models:/{model}/1").source


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("models:/nobody@champion", "nobody@champion: MLflow says: Registered Model with name=nobody not found"),
        ("models:/nobody/7", "models:/nobody/7: MLflow says: .*not found"),
        ("runs:/0123456789abcdef0123456789abcdef/model", "MLflow says: Run .*not found"),
        ("models:/nobody", "names nothing in MLflow; write models:/name@alias"),
    ],
)
def test_what_is_not_there_is_told_in_one_sentence(home, uri, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        locate(uri)
    assert "\n" not in str(error.value)


def test_an_alias_that_is_not_there_is_told(client, model, tmp_path):
    register(None, tmp_path, 0.8, number=1, model=model)
    with pytest.raises(InputError, match="alias champion not found"):
        locate(f"models:/{model}@champion")


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("http://me:secretive@[::1", "MLFLOW_TRACKING_URI: is no address that can be taken apart"),
        ("sqlite://me:secretive", "MLFLOW_TRACKING_URI: is no address that can be taken apart"),
        ("http://me:secretive@host:99x", "Invalid url"),
    ],
)
def test_an_address_of_mlflow_that_leads_nowhere_is_bad_input(home, monkeypatch, address, sentence):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(InputError, match=sentence) as error:
        locate("models:/nobody/1")
    assert "secretive" not in str(error.value) + str(error.value.__cause__)
    assert "\n" not in str(error.value)


def test_no_server_is_a_failure_that_may_pass(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ConnectionError, match="models:/a@b: MLflow does not answer") as error:
            locate("models:/a@b")
    assert "\n" not in str(error.value)


def log_files(files, name="model"):
    """A run with these files as its artifacts; returns its id."""
    return Tracker("digits").record("files", artifacts=files)


def test_shards_and_their_companions_are_fetched_and_nothing_else(client, home, tmp_path):
    folder = tmp_path / "model"
    (folder / "code").mkdir(parents=True)
    for number in (1, 2):
        save_file({f"w{number}": torch.ones(3)}, folder / f"model-{number}.safetensors")
    places = {f"w{number}": f"model-{number}.safetensors" for number in (1, 2)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    for name in ("config.json", "MLmodel", "code/x.py"):
        (folder / name).write_text("{}")
    run = log_files([folder])
    path, promised = fetch_model(f"runs:/{run}/model", tmp_path / "out", 10**6)
    names = {file.name for file in path.iterdir()}
    assert names == {"model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json", "config.json"}
    assert promised is None
    with pytest.raises(InputError, match="10 are allowed"):
        fetch_model(f"runs:/{run}/model", tmp_path / "out", 10)


def test_a_file_of_a_run_is_a_checkpoint(client, home, tmp_path):
    save_file({"w": torch.ones(3)}, tmp_path / "x.safetensors")
    (tmp_path / "notes.txt").write_text("nothing")
    run = log_files([tmp_path / "x.safetensors", tmp_path / "notes.txt"])
    path, _ = fetch_model(f"runs:/{run}/x.safetensors", tmp_path / "out", 10**6)
    assert load_file(path)["w"].tolist() == [1.0] * 3
    with pytest.raises(InputError, match="there is nothing in MLflow"):
        fetch_model(f"runs:/{run}/y.safetensors", tmp_path / "out", 10**6)
    with pytest.raises(InputError, match="holds no checkpoint"):
        fetch_model(f"runs:/{run}/notes.txt", tmp_path / "out", 10**6)


def download(uri):
    return download_checkpoint.fn(name="a", uri=uri, sha256=None, version="x", max_bytes=10**9)


def test_weights_that_changed_after_they_were_registered_are_refused(client, model, home, tmp_path, monkeypatch):
    monkeypatch.setattr("prefect.logging.get_run_logger", lambda: logging.getLogger("x"))
    run = register(None, tmp_path, 0.8, number=1, model=model)
    assert load_file(download(f"models:/{model}/1").path)["w"].tolist() == [1.0] * 4
    [stored] = home.glob(f".mlflow/artifacts/{run}/artifacts/model/model.safetensors")
    save_file({"w": torch.zeros(4)}, stored)
    with pytest.raises(InputError, match="was registered; the artifacts in MLflow changed"):
        download(f"models:/{model}/1")
    assert not list(home.glob(".store/incoming/*.registered"))


def register_left_out(published, model, value):
    """A version whose weights MLflow has not: they are in the store, and published. Returns the artifact."""
    published.mkdir(parents=True)
    save_file({"w": torch.full((4,), value)}, published / "model.safetensors")
    ref = take_file(published / "model.safetensors", "checkpoint")
    return register_published(published, model, ref)


def register_published(published, model, ref, sha256=None):
    files = file_digests(ref, "model.safetensors")
    (published / "lineage.json").write_text(json.dumps({"files": files}))
    plan = Plan(name="p", checkpoints=[{"name": name, "uri": name} for name in "ab"], output=published)
    registration = Registration(model=model, tags={SHA256: sha256 or ref.sha256} | tags_of(ref, plan))
    Tracker("digits").record("large", artifacts=[published / "lineage.json"], registration=registration)
    return ref


@pytest.mark.parametrize("place", ["stored", "published"])
def test_weights_that_mlflow_has_not_are_a_parent_where_they_are_at_hand(
    client, model, home, tmp_path, monkeypatch, place
):
    monkeypatch.setattr("prefect.logging.get_run_logger", lambda: logging.getLogger("x"))
    ref = register_left_out(tmp_path / "out", model, 1.0 if place == "stored" else 2.0)
    if place == "published":
        ref.path.unlink()
    found = download(f"models:/{model}@candidate")
    assert found.identity == ref.identity
    assert found.metadata["source"] == f"models:/{model}@candidate"
    ref.path.unlink()
    save_file({"w": torch.zeros(4)}, tmp_path / "out" / "model.safetensors")
    with pytest.raises(InputError, match="too large to be copied into MLflow, and lie unaltered neither in") as error:
        download(f"models:/{model}/1")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["stored", "published"])
def test_shards_that_mlflow_has_not_are_a_parent_too(client, model, home, tmp_path, monkeypatch, place):
    monkeypatch.setattr("prefect.logging.get_run_logger", lambda: logging.getLogger("x"))
    published = tmp_path / "out"
    published.mkdir()
    write_checkpoint(
        published / "model.safetensors", {f"w{n}": torch.full((64,), n) for n in (1.0, 2.0)}, max_shard_size=300
    )
    ref = put_directory(lambda folder: shutil.copytree(published, folder, dirs_exist_ok=True), "checkpoint")
    assert len(file_digests(ref, "")) == 3
    register_published(published, model, ref)
    if place == "published":
        shutil.rmtree(ref.path)
    assert download(f"models:/{model}/1").identity == ref.identity


@pytest.mark.parametrize("place", ["stored", "published"])
def test_a_folder_of_one_file_that_mlflow_has_not_counts_as_that_file(
    client, model, home, tmp_path, monkeypatch, place
):
    monkeypatch.setattr("prefect.logging.get_run_logger", lambda: logging.getLogger("x"))
    published = tmp_path / "out"
    published.mkdir()
    save_file({"w": torch.full((4,), 5.0 if place == "stored" else 6.0)}, published / "model.safetensors")
    ref = put_directory(lambda folder: shutil.copytree(published, folder, dirs_exist_ok=True), "checkpoint")
    sha256 = digest(published / "model.safetensors")
    register_published(published, model, ref, sha256)
    if place == "published":
        shutil.rmtree(ref.path)
    assert download(f"models:/{model}/1").sha256 == sha256


def test_what_a_version_needs_stays_until_the_version_goes(client, model, home, tmp_path, monkeypatch, capsys):
    ref = register_left_out(tmp_path / "out", model, 3.0)
    other = put_json({"of": model}, "other")

    def clean():
        for path in (use_note(ref.identity), use_note(other.identity), *home.glob(".store/registered/*")):
            if path.exists():
                os.utime(path, (1, 1))
        monkeypatch.setattr("sys.argv", ["clean_cache", "--older-than", "30d"])
        assert clean_cache.main() == 0
        return capsys.readouterr().out

    for note in home.glob(".store/registered/*"):  # of other tests
        if note.name != ref.identity:
            note.unlink()
    assert f"kept, however old: {ref.sha256[:12]}, the weights of models:/{model}/1" in clean()
    assert (ref.path.exists(), other.path.exists()) == (True, False)
    with monkeypatch.context() as patch, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert "the weights of a version in an MLflow that does not answer" in clean()
    assert ref.path.exists()
    client.delete_model_version(model, "1")
    assert "kept" not in clean()
    assert not ref.path.exists()
    assert not list(home.glob(".store/registered/*"))


def test_another_mlflow_that_knows_of_no_version_frees_nothing(client, model, home, tmp_path, monkeypatch):
    ref = register_left_out(tmp_path / "out", model, 7.0)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'another.db'}")
        note = home / ".store" / "registered" / ref.identity
        os.utime(note, (1, 1))
        assert needed()[ref.identity] == ["a version in another MLflow, sqlite:///MERGELINE_STATE/.mlflow/mlflow.db"]
        register_published(tmp_path / "out", model, ref)
        assert len(needed()[ref.identity]) == 2
        MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).delete_model_version(model, "1")
        os.utime(note, (1, 1))
        assert len(needed()[ref.identity]) == 1
    assert needed()[ref.identity] == [f"models:/{model}/1"]
    client.delete_model_version(model, "1")
    os.utime(note, (1, 1))
    assert ref.identity not in needed()


def test_an_mlflow_that_does_not_answer_is_asked_once(client, model, home, tmp_path, monkeypatch):
    refs = [register_left_out(tmp_path / str(value), model, value) for value in (8.0, 9.0)]
    asked = []

    def lost(*about):
        asked.append(about)
        raise ConnectionError("gone")

    monkeypatch.setattr("tasks.registry.versions_with", lost)
    assert {ref.identity for ref in refs} <= set(needed())
    assert len(asked) == 1


def test_what_a_record_needs_that_is_not_delivered_stays(model, home, tmp_path, monkeypatch):
    with monkeypatch.context() as down:
        down.setattr(Tracker, "_send", lambda self, record: 1 / 0)
        register_left_out(tmp_path / "out", model, 4.0)
    assert ["a record that is not delivered yet"] in needed().values()
    assert len(Tracker("digits").deliver_pending()) == 1
    assert [f"models:/{model}/1"] in needed().values()


def test_a_pinned_checkpoint_asks_nobody():
    pinned = Checkpoint(name="a", uri="models:/nobody@champion", sha256="ab" * 32)
    assert source_version(pinned) == "ab" * 32


def test_a_model_and_its_registration_survive_as_a_record():
    one = Registration(model="m", tags={"a": "b"})
    assert Registration.model_validate_json(one.model_dump_json()) == one
