"""What lies in a folder elsewhere: on the disk, on the Hugging Face hub, on any file system of fsspec."""

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from mergeline.checkpoints.files import COMPANIONS, SUFFIXES, is_index
from mergeline.checkpoints.filesystem import list_names
from mergeline.checkpoints.hub import hub_cache, hub_files, parse_hub_folder
from mergeline.checkpoints.sources import path_of
from mergeline.checkpoints.transfer import shown
from mergeline.errors import InputError

# What to ask a web server for, which lists nothing: the companions whose names are always the same.
OPTIONAL = (*(name for name in COMPANIONS if "*" not in name), "tokenizer.model")


@dataclass(frozen=True)
class Remote:
    """A file elsewhere: its address, and its size and digest where the source tells them."""

    uri: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Listing:
    """The files of a folder by name; chosen: the index that the address named, if it named one."""

    name: str
    files: Mapping[str, Remote]
    chosen: str | None = None

    def remote(self, name: str) -> Remote:
        """One of the files. Raises InputError where the folder lacks it."""
        if name not in self.files:
            raise InputError(f"{self.name}: the shard {name} is missing; complete the folder")
        return self.files[name]


def list_folder(uri: str) -> Listing | None:
    """The files of the folder that a uri names, directly or by an index in it; None where it names one file.

    A web server lists nothing: an index on it counts as one file. Raises InputError and TransientError as `fetch` does.
    """
    scheme = uri.partition("://")[0].lower() if "://" in uri else "path"
    if scheme in ("http", "https"):
        return None
    if scheme == "hf":
        return _list_hub(uri)
    if scheme in ("path", "file"):
        return _list_local(Path(path_of(uri) if scheme == "file" else uri).expanduser(), shown(uri))
    chosen = posixpath.basename(uri) if is_index(uri) else None
    folder = uri.removesuffix(chosen or "")
    names = list_names(folder, surely=bool(chosen) or uri.endswith("/") or not uri.endswith(SUFFIXES))
    if names is None:
        return None
    files = {name: Remote(f"{folder.rstrip('/')}/{name}", size) for name, size in names.items()}
    return Listing(shown(uri), files, chosen)


def _list_local(path: Path, name: str) -> Listing | None:
    chosen = path.name if is_index(path.name) else None
    folder = path.parent if chosen else path
    if not folder.is_dir():
        return None
    files = {file.name: Remote(str(file), file.stat().st_size) for file in folder.iterdir() if file.is_file()}
    return Listing(name, files, chosen)


def _list_hub(uri: str) -> Listing | None:
    if uri.endswith(SUFFIXES) and uri.count("/") > 3:
        return None
    chosen = posixpath.basename(uri) if is_index(uri) else None
    folder = parse_hub_folder(uri.removesuffix(chosen or ""))
    cached = hub_cache(folder, shown(uri))
    if cached is not None:
        return _list_local(cached / folder.path / (chosen or ""), shown(uri))
    commit, found = hub_files(folder, shown(uri))
    at = f"hf://{folder.repository}@{quote(commit, safe='')}/{folder.path}"
    files = {name: Remote(at + name, size, digest) for name, (size, digest) in found.items()}
    return Listing(shown(uri), files, chosen)


def sibling(uri: str, name: str) -> Remote:
    """A file beside the one that a web address names, asked for in the same way."""
    parts = urlsplit(uri)
    return Remote(urlunsplit(parts._replace(path=posixpath.dirname(parts.path) + "/" + quote(name), fragment="")))
