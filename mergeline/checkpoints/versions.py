"""Which version of a checkpoint lies elsewhere, as its source says: asked, not downloaded."""

from __future__ import annotations

import json
from urllib.parse import unquote

from mergeline.checkpoints.files import is_index
from mergeline.checkpoints.filesystem import stated_keys
from mergeline.checkpoints.hub import hub_cache, hub_files, parse_hub, parse_hub_folder
from mergeline.checkpoints.listing import sibling
from mergeline.checkpoints.transfer import Body, shown
from mergeline.checkpoints.web import open_web
from mergeline.errors import InputError

LARGEST_INDEX = 64 << 20  # bytes


def stated_version(uri: str) -> str | None:
    """What changes when the bytes do, None where the source says nothing.

    The commit of an hf:// revision; the ETag or the date of a web file, and of the shards beside an index; what a file
    system of fsspec (s3://, gs://) knows of each file.

    A web server is asked as for a download, which is then not read: a signed address permits no other question.
    Raises InputError and TransientError as `fetch` does.
    """
    scheme = uri.partition("://")[0].lower()
    if scheme == "hf":
        return _commit(uri)
    if scheme in ("http", "https"):
        return _web_version(uri)
    return stated_keys(uri)


def _commit(uri: str) -> str:
    try:
        folder = parse_hub(uri)
        folder = folder._replace(path=folder.path.rpartition("/")[0] + "/" * ("/" in folder.path))
    except InputError:  # it names no file
        folder = parse_hub_folder(uri)
    cached = hub_cache(folder, shown(uri))
    return cached.name if cached else hub_files(folder, shown(uri))[0]


def _web_version(uri: str) -> str | None:
    with open_web(uri, None) as body:
        version = _version_of(body)
        if not is_index(unquote(uri.partition("?")[0])):
            return version
        shards = _shards(body, shown(uri))
    versions = [version]
    for shard in shards:
        with open_web(sibling(uri, shard).uri, None) as body:
            versions.append(_version_of(body))
    return None if None in versions else json.dumps(versions)


def _version_of(body: Body) -> str | None:
    return body.validator and f"{body.validator} {body.total}"


def _shards(body: Body, name: str) -> list[str]:
    content = b""
    for chunk in body.chunks:
        content += chunk
        if len(content) > LARGEST_INDEX:
            raise InputError(f"{name}: is no index of shards; it is too large")
    try:
        return sorted({str(shard) for shard in json.loads(content)["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{name}: is no index of shards; check the address") from None
