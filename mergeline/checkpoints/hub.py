"""Bytes from the Hugging Face hub: hf://org/repo@revision/path/of/file (a branch, tag or commit; default main).

Address, token, cache and offline mode are huggingface_hub's; the transfer is ours, so that a file of the hub is
resumed, limited and verified like any other, and does not lie on the disk twice.
"""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from mergeline.checkpoints.filesystem import open_file
from mergeline.checkpoints.transfer import Body, Partial, shown
from mergeline.checkpoints.web import open_web
from mergeline.errors import InputError

ADVICE = "check repository, revision and file name; for a private or gated repository set HF_TOKEN"


class HubFile(NamedTuple):
    """One file of a repository at a revision."""

    repository: str
    revision: str
    path: str


def parse_hub(uri: str) -> HubFile:
    """Read hf://org/repo[@revision]/path; a slash in a revision is written %2F. Raises InputError."""
    organisation, _, rest = uri.partition("://")[2].partition("/")
    name, _, path = rest.partition("/")
    repository, at, revision = name.partition("@")
    if not (organisation and repository and path) or (at and not revision) or ".." in path.split("/"):
        raise InputError(
            f"{shown(uri)}: is not of the form hf://organisation/repository@revision/file (@revision may go)"
        )
    return HubFile(f"{organisation}/{repository}", unquote(revision) or "main", path)


def parse_hub_folder(uri: str) -> HubFile:
    """Read hf://org/repo[@revision][/folder]; its path is empty or ends with a slash. Raises InputError."""
    try:
        file = parse_hub(uri.rstrip("/") + "/-")
    except InputError:
        raise InputError(
            f"{shown(uri)}: is not of the form hf://organisation/repository@revision/folder "
            "(@revision and folder may go)"
        ) from None
    return file._replace(path=file.path.removesuffix("-"))


def hub_cache(folder: HubFile, name: str) -> Path | None:
    """In offline mode, where the hub's cache has the repository; else None. Raises InputError where it has it not."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not constants.HF_HUB_OFFLINE:
        return None
    repository, revision, _ = folder
    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError):
        raise InputError(
            f"{name}: is not in the hub's cache, and offline mode is on; unset HF_HUB_OFFLINE, or where there is a "
            f"network run: hf download {repository} --revision {revision}"
        ) from None


def hub_files(folder: HubFile, name: str) -> tuple[str, dict[str, tuple[int | None, str | None]]]:
    """The commit that a revision is now, and the files right in a folder: name -> size and, of large ones, sha256.

    Raises as open_web does.
    """
    from huggingface_hub import constants

    repository, revision, path = folder
    url = f"{constants.ENDPOINT}/api/models/{repository}/revision/{quote(revision, safe='')}?blobs=true"
    with open_web(url, None, name=name, headers=_headers(), advice=ADVICE) as body:
        content = b"".join(body.chunks)
    try:
        answer = json.loads(content)
        commit = str(answer["sha"])
        files = {
            str(file["rfilename"]).removeprefix(path): (file.get("size"), (file.get("lfs") or {}).get("sha256"))
            for file in answer["siblings"]
            if str(file["rfilename"]).startswith(path)
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{name}: {constants.ENDPOINT} answers as no Hugging Face hub does; check HF_ENDPOINT"
        ) from None
    if not files:
        raise InputError(f"{name}: the repository has no folder '{path}'; {ADVICE}")
    return commit, {file: found for file, found in files.items() if "/" not in file}


def _headers() -> dict[str, str] | None:
    from huggingface_hub import constants, get_token

    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    return {"Authorization": f"Bearer {token}"} if token else None


def open_hub(uri: str, partial: Partial | None) -> AbstractContextManager[Body]:
    """Open a file of the hub; in offline mode (HF_HUB_OFFLINE) from the hub's cache. Raises as open_web does."""
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache

    name, (repository, revision, path) = shown(uri), parse_hub(uri)
    try:
        url = hf_hub_url(repository, path, revision=revision)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None
    if not constants.HF_HUB_OFFLINE:
        return open_web(url, partial, name=name, headers=_headers(), advice=ADVICE)
    cached = try_to_load_from_cache(repository, path, revision=revision)
    if not isinstance(cached, str):
        raise InputError(
            f"{name}: is not in the hub's cache, and offline mode is on; unset HF_HUB_OFFLINE, or where there is a "
            f"network run: hf download {repository} {path} --revision {revision}"
        )
    return open_file(cached, partial, name=name)
