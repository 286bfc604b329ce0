"""Weights of registered models that are too large to be copied into MLflow: where they lie, and who still needs them.

Tags of the version name the artifact of the content store and the folder of the published result. The store keeps such
an artifact for as long as a version, or a record that is still to be sent, refers to it.

    .store/registered/abcd…    a version refers to this artifact, or did when MLflow was last asked; the file names the
                               addresses of the MLflow servers that such versions were made in
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mergeline.checkpoints.atomic import publish
from mergeline.errors import InputError
from mergeline.plan import Plan
from mergeline.redaction import redact
from tasks import outbox
from tasks._env import state_directory
from tasks.store import ArtifactRef, digest, store_directory
from tasks.usage import evicting, in_use_since

log = logging.getLogger(__name__)

STORED = "mergeline.stored"  # tag of a version: the artifact with its weights, where MLflow has not got them all
PUBLISHED = "mergeline.published"  # tag of such a version: the folder that they were published into


def is_copied(model: ArtifactRef, largest: int) -> bool:
    """Whether every file of a merged checkpoint is small enough to be copied."""
    files = [model.path, *model.path.rglob("*")]
    return all(file.stat().st_size <= largest for file in files if file.is_file())


def tags_of(model: ArtifactRef, plan: Plan) -> dict[str, str]:
    """The tags of a version whose weights are not all copied. The store keeps the artifact from now on."""
    note = _notes() / model.identity
    note.parent.mkdir(parents=True, exist_ok=True)
    note.touch()
    return {STORED: model.identity, PUBLISHED: str(plan.output.resolve())}


def note_version(stored: str, address: str) -> None:
    """A version that has this artifact's weights nowhere else is about to be made in the MLflow at this address."""
    note, here = _notes() / stored, _named(address)
    if here not in (addresses := _text(note).splitlines()):
        _write(note, [*addresses, here])


def needed() -> dict[str, list[str]]:
    """Artifact -> the versions that have its weights nowhere else, as far as this store knows.

    Where MLflow does not answer, or is not the one that the versions are in, all that a version referred to when it
    was last asked counts as needed.
    """
    found, silent = {}, False
    for note in sorted(_notes().glob("[!.]*")):
        versions, silent = _needing(note, silent)
        if versions:
            found[note.name] = versions
    return found


def _needing(note: Path, silent: bool) -> tuple[list[str], bool]:
    """The versions that need an artifact; its note goes where there are none, and none will come.

    silent: MLflow did not answer before, and is not asked again. Returned anew.
    """
    from tasks.registry import told, versions_with

    if any(note.name in _text(folder / outbox.RECORD) for folder in outbox.pending()):
        return ["a record that is not delivered yet"], silent
    unanswered = ["a version in an MLflow that does not answer"]
    if silent:
        return unanswered, True
    try:
        with told(note.name):
            versions = versions_with(STORED, note.name)
    except (ConnectionError, InputError) as error:
        log.warning("what registered versions need is kept: %s", error)
        return unanswered, isinstance(error, ConnectionError)
    with evicting():
        elsewhere = [address for address in _text(note).splitlines() if address != _named(_asked())]
        if not versions and note.stat().st_mtime < in_use_since():  # a run that goes on may be about to register it
            _write(note, elsewhere) if elsewhere else note.unlink()
    return [*versions, *(f"a version in another MLflow, {address}" for address in elsewhere)], False


def _asked() -> str:
    return os.environ["MLFLOW_TRACKING_URI"]


def _named(address: str) -> str:
    """An address as it is written down: without secrets, and the project's own database wherever the project lies."""
    return redact(address).replace(str(state_directory()), "MERGELINE_STATE")


def _write(note: Path, addresses: list[str]) -> None:
    note.parent.mkdir(parents=True, exist_ok=True)
    draft = note.with_name(f".{note.name}.{uuid.uuid4().hex}")
    draft.write_text("".join(f"{address}\n" for address in addresses), encoding="utf-8")
    publish(draft, note)


def _text(file: Path) -> str:
    with suppress(FileNotFoundError):  # it was delivered a moment ago
        return file.read_text(encoding="utf-8")
    return ""


def find_weights(uri: str, tags: Mapping[str, str]) -> Path:
    """The checkpoint of a version that has these tags, in the store or where it was published; its bytes are verified.

    InputError where neither has it unaltered.
    """
    sha256, dot, suffix = tags[STORED].partition(".")
    with suppress(ValueError):
        stored = ArtifactRef(sha256=sha256, kind="checkpoint", suffix=dot + suffix).path
        names = sorted(stored.iterdir()) if stored.is_dir() else [stored]
        return stored if len(names) > 1 else names[0]  # as versions count: see `checkpoint_digest`
    folder = Path(tags.get(PUBLISHED, ""))
    with suppress(OSError, ValueError, AttributeError):
        files: dict[str, str] = json.loads((folder / "lineage.json").read_text(encoding="utf-8"))["files"]
        listing = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()
        if sha256 in (listing, *files.values()) and all(digest(folder / name) == files[name] for name in files):
            return folder if len(files) > 1 else folder / next(iter(files))
    raise InputError(
        f"{uri}: its weights were too large to be copied into MLflow, and lie unaltered neither in the content store "
        f"(sha256 {sha256}) nor in {folder}; publish that result again, or name the address of a copy"
    )


def _notes() -> Path:
    return store_directory() / "registered"
