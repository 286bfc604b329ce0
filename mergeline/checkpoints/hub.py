"""Bytes from the Hugging Face hub: hf://org/repo@revision/path/of/file (a branch, tag or commit; default main).

Address, token, cache and offline mode are huggingface_hub's; the transfer is ours, so that a file of the hub is
resumed, limited and verified like any other, and does not lie on the disk twice.
"""

from contextlib import AbstractContextManager
from typing import NamedTuple
from urllib.parse import unquote

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


def open_hub(uri: str, partial: Partial | None) -> AbstractContextManager[Body]:
    """Open a file of the hub; in offline mode (HF_HUB_OFFLINE) from the hub's cache. Raises as open_web does."""
    from huggingface_hub import constants, get_token, hf_hub_url, try_to_load_from_cache

    name, (repository, revision, path) = shown(uri), parse_hub(uri)
    try:
        url = hf_hub_url(repository, path, revision=revision)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None
    if not constants.HF_HUB_OFFLINE:
        token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
        headers = {"Authorization": f"Bearer {token}"} if token else None
        return open_web(url, partial, name=name, headers=headers, advice=ADVICE)
    cached = try_to_load_from_cache(repository, path, revision=revision)
    if not isinstance(cached, str):
        raise InputError(
            f"{name}: is not in the hub's cache, and offline mode is on; unset HF_HUB_OFFLINE, or where there is a "
            f"network run: hf download {repository} {path} --revision {revision}"
        )
    return open_file(cached, partial, name=name)
