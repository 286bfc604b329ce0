"""Stage: bring checkpoints into the content store, from wherever they are."""

from __future__ import annotations

import hashlib
import re
import shutil
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mergeline.checkpoints.files import checkpoint_files, digest_of_files, is_index, shard_size
from mergeline.errors import InputError
from mergeline.plan_surroundings import is_registered
from tasks.locks import exclusive
from tasks.policy import stage
from tasks.registry import fetch_model, find_model
from tasks.secrets import revealed
from tasks.store import ArtifactRef, digest, put_directory, put_file, store_directory, take_file

if TYPE_CHECKING:
    from mergeline.checkpoints.readers import Reader
    from mergeline.plan import Checkpoint


@stage("download-checkpoint", retries=4, timeout_seconds=12 * 3600)
def download_checkpoint(name: str, uri: str, sha256: str | None, version: str, max_bytes: int) -> ArtifactRef:
    """Fetch one checkpoint, resuming where an earlier attempt broke off; refuse what does not have the pinned digest.

    version: what identifies the bytes beforehand (see `source_version`): another version is fetched again.
    """
    from prefect.logging import get_run_logger

    from mergeline.checkpoints.folders import fetch_checkpoint
    from mergeline.checkpoints.licence import licence_of
    from mergeline.checkpoints.readers import open_checkpoint

    key = hashlib.sha256(f"{uri} {sha256}".encode()).hexdigest()[:16]
    incoming = store_directory() / "incoming" / key
    aside = incoming.with_suffix(".registered")
    with exclusive(incoming.with_suffix(".lock")):  # two entries of a plan may have the same source
        try:
            source, promised, about = revealed(uri), None, {"name": name}
            if uri.startswith("hf://"):
                about["licence"] = licence_of(uri)
            if is_registered(uri):
                about["source"] = uri
                path, promised = fetch_model(uri, aside, max_bytes)
                source = str(path)
            fetched = fetch_checkpoint(source, incoming, sha256=sha256, max_bytes=max_bytes)
            open_checkpoint(fetched)
            if fetched.is_file():
                ref = take_file(fetched, "checkpoint", **about)
            else:
                ref = put_directory(partial(_move_files, fetched), "checkpoint", **about)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
            shutil.rmtree(aside, ignore_errors=True)
    if promised not in (None, ref.sha256):
        raise InputError(f"{uri}: has sha256 {ref.sha256}, {promised} was registered; the artifacts in MLflow changed")
    get_run_logger().info("%s: %d bytes, sha256 %s", name, size_of(ref.path), ref.sha256)
    return ref


def _move_files(source: Path, target: Path) -> None:
    for path in source.iterdir():
        path.rename(target / path.name)


def size_of(path: Path) -> int:
    """Bytes of a checkpoint, with all that goes along with it."""
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))


def resolved(spec: Checkpoint) -> tuple[str, str]:
    """The address to fetch and the version of its bytes; an alias in the registry is the version that it names now."""
    if spec.sha256 is None and is_registered(spec.uri):
        found = find_model(spec.uri)
        return found.uri, found.identity
    return spec.uri, source_version(spec)


def source_version(spec: Checkpoint) -> str:
    """What identifies the bytes of a source before they are fetched: the pin, digests of local files, or a commit.

    A remote source without any of them may change at any time, so it gets a new version on every run.
    """
    if spec.sha256:
        return spec.sha256
    local = Path(spec.uri.removeprefix("file://"))
    if local.is_dir() or (is_index(local.name) and local.is_file()):
        return digest_of_files({name: digest(path) for name, path in checkpoint_files(local).items()})
    if local.is_file():
        return digest(local)
    if re.match(r"hf://[^@]+@[0-9a-f]{40}(/|$)", spec.uri):
        return spec.uri
    return uuid.uuid4().hex


def open_artifact(ref: ArtifactRef) -> Reader:
    """Reader of a checkpoint in the store; errors call it by its name in the plan."""
    from mergeline.checkpoints.readers import open_checkpoint

    reader = open_checkpoint(ref.path)
    reader.source = str(ref.metadata.get("name", ref.sha256[:12]))
    return reader


def open_artifacts(refs: list[ArtifactRef]) -> list[Reader]:
    """Readers of several checkpoints; the same artifact gives the same reader."""
    readers = {ref.identity: open_artifact(ref) for ref in refs}
    return [readers[ref.identity] for ref in refs]


def put_checkpoint(
    write: Callable[[Path, int | None], object],
    like: ArtifactRef,
    name: str,
    max_shard_size: int | None,
    *,
    dtype: str | None = None,
    vocabulary: int | None = None,
    untied: bool = False,
) -> ArtifactRef:
    """Store the checkpoint that `write(path, max_shard_size)` makes, laid out like another one: a file; or a folder
    with shards, or with the configuration and tokenizer that go along, which say the dtype, vocabulary and ties given.
    """
    from mergeline.checkpoints.files import output_name
    from mergeline.checkpoints.huggingface import carry_companions

    if not like.path.is_dir() and max_shard_size is None:
        return put_file(lambda path: write(path, None), ".safetensors", "checkpoint", name=name)

    def fill(folder: Path) -> None:
        file = output_name(like.path)
        write(folder / file, shard_size(file, max_shard_size))
        if like.path.is_dir():
            carry_companions(like.path, folder, dtype=dtype, vocabulary=vocabulary, untied=untied)

    return put_directory(fill, "checkpoint", name=name)
