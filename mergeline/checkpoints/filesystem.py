"""Bytes from a local path or from any file system that fsspec knows (s3://, gs://, memory://, ...)."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any

import fsspec
from fsspec.core import url_to_fs

from mergeline.checkpoints.files import is_index
from mergeline.checkpoints.transfer import CHUNK, Body, Partial, TransientError, shown
from mergeline.errors import InputError

# What the file systems call the digest of a file, or the time when it was written.
_VERSION_FIELDS = ("ETag", "etag", "md5Hash", "content_md5", "checksum", "created", "mtime", "LastModified", "updated")


@contextmanager
def open_file(uri: str, partial: Partial | None, *, name: str | None = None) -> Iterator[Body]:
    """Open a file at the end of `partial` where it is still the same file, else at its beginning.

    Raises InputError for what is missing, forbidden or unknown, TransientError for everything that may pass.
    """
    name = name or shown(uri)
    with ExitStack() as opened:
        with _failures_of(name):
            files, path = _locate(uri, name)
            info = files.info(path)
            if info["type"] == "directory":
                raise InputError(f"{name}: is a folder; name the checkpoint file in it")
            validator = files.ukey(path)
            start = partial.size if partial and partial.validator == validator else 0
            file = opened.enter_context(files.open(path, "rb"))
            file.seek(start)
        yield Body(_chunks(file, name), start, info.get("size"), validator)


NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError")  # of botocore, which may not be installed


def list_names(uri: str, *, surely: bool) -> dict[str, int | None] | None:
    """The files right in a folder of an fsspec file system: name -> size; None where the uri names no folder.

    surely: look whether it is one; otherwise nobody is asked, and it is none. Raises as open_file does.
    """
    if not surely:
        return None
    name = shown(uri)
    with _failures_of(name):
        files, path = _locate(uri, name)
        if not files.isdir(path):
            return None
        found = files.ls(path, detail=True)
    return {
        str(entry["name"]).rstrip("/").rpartition("/")[2]: entry.get("size")
        for entry in found
        if entry["type"] == "file"
    }


def stated_keys(uri: str) -> str | None:
    """What a file system of fsspec knows of a file, or of each file right in a folder; raises as open_file does.

    None where it knows no more of them than their sizes.
    """
    name = shown(uri)
    with _failures_of(name):
        files, path = _locate(uri, name)
        files.invalidate_cache()
        if is_index(path):  # the shards lie beside it
            path = files._parent(path)
        info = files.info(path)
        entries = files.ls(path, detail=True) if info["type"] == "directory" else [info]
    keys = {str(entry["name"]): _key_of(entry) for entry in entries if entry["type"] == "file"}
    return None if None in keys.values() else json.dumps(keys, sort_keys=True)


def _key_of(entry: dict[str, Any]) -> list[str] | None:
    known = [f"{field}={entry[field]}" for field in _VERSION_FIELDS if entry.get(field) is not None]
    return [*known, f"size={entry.get('size')}"] if known else None


def _locate(uri: str, name: str) -> tuple[Any, str]:
    """The file system of a uri and the path in it."""
    if "://" not in uri:
        return fsspec.filesystem("file"), uri
    try:
        return url_to_fs(uri)
    except ImportError as error:  # says which package: "Install s3fs to access S3"
        raise InputError(f"{name}: this kind of address needs a package that is not installed: {error}") from None
    except ValueError:
        raise InputError(
            f"{name}: unknown kind of address; use a path, https://, hf://org/repo@revision/file or an fsspec URL"
        ) from None


def _chunks(file: IO[bytes], name: str) -> Iterator[bytes]:
    with _failures_of(name):
        while chunk := file.read(CHUNK):
            yield chunk


@contextmanager
def _failures_of(name: str) -> Iterator[None]:
    """Sort the errors of any file system into those that stay and those that may pass.

    Only the kind of an unknown error is told: its text may hold keys or signed addresses.
    """
    try:
        yield
    except (InputError, TransientError):
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{name}: there is no such file; check the path") from None
    except PermissionError:
        raise InputError(f"{name}: reading is not permitted; check the credentials or the file's mode") from None
    except Exception as error:
        if type(error).__name__ in NO_CREDENTIALS:
            raise InputError(f"{name}: needs credentials, and none are set; set those of its file system") from None
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise TransientError(
            f"{name}: cannot be read now ({reason}); check network and credentials, try again"
        ) from None
