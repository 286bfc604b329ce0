"""The model registry of MLflow: versions are made with the record of their run, and found by their addresses.

models:/name@alias    models:/name/3    runs:/run/path
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from mergeline.checkpoints.files import choose_weights, companions, is_index, weight_map
from mergeline.errors import InputError
from mergeline.plan_surroundings import REGISTERED
from mergeline.redaction import redact, scrub
from tasks.policy import action
from tasks.registered_weights import STORED, find_weights, note_version
from tasks.tracking import Registration, connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

CANDIDATE, CHAMPION = "candidate", "champion"
FOLDER = "model"  # of a registered model, among the artifacts of its run
ENDED = "mergeline.ended"  # tag of a version: when its run ended, in seconds
DATA = "mergeline.data_sha256"  # tag of a version: the digest of what its run was measured on
SHA256 = "mergeline.sha256"  # tag of a version: the digest of the merged checkpoint


class RegisteredVersion(BaseModel):
    """What an address of the registry stands for now. sha256: of the checkpoint, where the version says so.

    tags: of the version.
    """

    model_config = ConfigDict(frozen=True)

    uri: str
    identity: str
    source: str
    sha256: str | None = None
    tags: dict[str, str] = {}


# --- registering -----------------------------------------------------------------------------------------------------


def register(client: MlflowClient, run_id: str, registration: Registration) -> str:
    """Make a version of a run's model, unless there is one, and give it the alias `candidate`; returns its number.

    A run that is delivered late does not take the alias from one that ended after it.
    """
    from mlflow.exceptions import MlflowException

    name = registration.model
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = [found for found in client.search_model_versions(f"run_id='{run_id}'") if found.name == name]
    source = f"{client.get_run(run_id).info.artifact_uri}/{FOLDER}"
    if STORED in registration.tags:
        note_version(registration.tags[STORED], client.tracking_uri)
    made = known[0] if known else client.create_model_version(name, source, run_id, tags=registration.tags)
    current = find_alias(client, name, CANDIDATE)
    if current is None or float(current.tags.get(ENDED, 0)) <= float(registration.tags.get(ENDED, 0)):
        client.set_registered_model_alias(name, CANDIDATE, made.version)
    return str(made.version)


def find_alias(client: MlflowClient, model: str, alias: str) -> Any:
    """The version that has an alias, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(model, alias)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
            raise
        return None


# --- finding ---------------------------------------------------------------------------------------------------------


@action("find-model", retries=4)
def find_model(uri: str) -> RegisteredVersion:
    """`locate`, tried again while MLflow does not answer."""
    return locate(uri)


def locate(uri: str) -> RegisteredVersion:
    """What an address stands for now: an alias may have moved since the last run.

    Raises InputError where there is no such model, alias, version or run; ConnectionError where MLflow does not answer.
    """
    if not REGISTERED.fullmatch(uri):
        raise InputError(f"'{uri}' names nothing in MLflow; write models:/name@alias, models:/name/3 or runs:/run/path")
    with told(uri):
        client = connect()
        if uri.startswith("runs:/"):
            run_id, _, path = uri.removeprefix("runs:/").partition("/")
            source = f"{client.get_run(run_id).info.artifact_uri}/{path}"
            return RegisteredVersion(uri=uri, identity=f"{uri} {source}", source=source)
        name, mark, which = re.split("([/@])", uri.removeprefix("models:/"), maxsplit=1)
        found = (client.get_model_version_by_alias if mark == "@" else client.get_model_version)(name, which)
        source = client.get_model_version_download_uri(name, found.version)
        return RegisteredVersion(
            uri=f"models:/{name}/{found.version}",
            identity=f"models:/{name}/{found.version} {found.creation_timestamp} {source}",  # numbers may come again
            source=source,
            sha256=found.tags.get(SHA256),
            tags=found.tags,
        )


def versions_with(tag: str, value: str) -> list[str]:
    """The addresses of all versions, of whatever model, that have a tag of this value."""
    client, token = connect(), None
    found: list[str] = []
    while True:
        page = client.search_model_versions(f"tags.`{tag}` = '{value}'", page_token=token)
        found += [f"models:/{version.name}/{version.version}" for version in page]
        if not (token := page.token):
            return sorted(found)


def fetch_model(uri: str, folder: Path, max_bytes: int) -> tuple[Path, str | None]:
    """Copy the checkpoint of a registered model, or of a run's artifact, from MLflow into a folder.

    One that was too large for MLflow is found where it lies instead. Returns its path, and its digest where the version
    says which one it has. Errors as of `locate`; InputError, too, for what holds no checkpoint or is larger than
    max_bytes.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found = locate(uri)
    if STORED in found.tags:
        return find_weights(uri, found.tags), found.sha256
    with told(uri):
        repository, files = _artifacts(found)
        place, chosen = _checkpoint(files, uri)
        wanted = [chosen, *companions(_names(files, place))]
        if is_index(chosen):
            wanted += sorted(set(weight_map(_download(repository, place + chosen, folder)).values()))
        if missing := [name for name in wanted if place + name not in files]:
            raise InputError(f"{uri}: the shard {missing[0]} is missing; register the model again")
        size = sum(files[place + name] for name in set(wanted))
        if size > max_bytes:
            raise InputError(f"{uri}: the checkpoint has {size} bytes, {max_bytes} are allowed; raise the limit")
        for name in dict.fromkeys(wanted):
            _download(repository, place + name, folder)
    return (folder / place if len(set(wanted)) > 1 else folder / place / chosen), found.sha256


def _artifacts(found: RegisteredVersion) -> tuple[Any, dict[str, int]]:
    """Where the artifacts of a version lie, and path -> bytes of each. InputError where there are none."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    tracking_uri = connect().tracking_uri
    repository = get_artifact_repository(found.source, tracking_uri=tracking_uri)
    if files := _sizes(repository, None):
        return repository, files
    parent, _, name = found.source.rpartition("/")  # a file has no listing of its own
    repository = get_artifact_repository(parent, tracking_uri=tracking_uri)
    files = {entry.path: entry.file_size or 0 for entry in repository.list_artifacts() if entry.path == name}
    if not files:
        raise InputError(f"{found.uri}: there is nothing in MLflow at {found.source}")
    return repository, files


def _download(repository: Any, path: str, folder: Path) -> Path:
    return Path(repository.download_artifacts(path, dst_path=str(folder)))


def _sizes(repository: Any, folder: str | None) -> dict[str, int]:
    """Path -> bytes of every file in a folder of artifacts, however deep."""
    files: dict[str, int] = {}
    for entry in repository.list_artifacts(folder):
        files |= _sizes(repository, entry.path) if entry.is_dir else {entry.path: entry.file_size or 0}
    return files


def _checkpoint(files: dict[str, int], uri: str) -> tuple[str, str]:
    """The folder (with a slash, or empty) that holds a checkpoint, the uppermost of several, and the file to open."""
    folders = {path.rpartition("/")[0] for path in files}
    for folder in sorted(folders, key=lambda name: (name.count("/") + bool(name), name)):
        place = f"{folder}/" if folder else ""
        names = _names(files, place)
        if any(name.endswith((".safetensors", ".bin", ".pt", ".pth")) for name in names):
            return place, choose_weights(names, uri)
    raise InputError(f"{uri}: holds no checkpoint (.safetensors, .bin, .pt or .pth)")


def _names(files: dict[str, int], place: str) -> list[str]:
    return [path.removeprefix(place) for path in files if path.startswith(place) and "/" not in path[len(place) :]]


# --- errors ----------------------------------------------------------------------------------------------------------


@contextmanager
def told(what: str) -> Iterator[None]:
    """What MLflow raises within the block, in one sentence: ConnectionError where it may pass, InputError otherwise.

    Neither it nor what it comes of quotes a secret: Prefect keeps both.
    """
    try:
        with _in_one_sentence(what):
            yield
    except Exception as error:
        scrub(error)
        raise


@contextmanager
def _in_one_sentence(what: str) -> Iterator[None]:
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        sentence = redact(str(error).splitlines()[0].removesuffix("."))
        if is_passing(error):
            raise ConnectionError(f"{what}: MLflow does not answer: {sentence}") from error
        raise InputError(f"{what}: MLflow says: {sentence}") from error
    except requests.RequestException as error:
        raise ConnectionError(f"{what}: MLflow does not answer: {redact(str(error))}") from error


def is_passing(error: Exception) -> bool:
    """Whether a failure of MLflow may pass: no connection, HTTP 429 or 5xx, a database that is locked or away."""
    from mlflow.exceptions import InvalidUrlException, MlflowException

    if isinstance(error, MlflowException):
        return not isinstance(error, InvalidUrlException) and (_status(error) >= 500 or _status(error) == 429)
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith(
        ("requests", "urllib3", "sqlalchemy")
    )


def _status(error: Any) -> int:
    return int(error.get_http_status_code())
