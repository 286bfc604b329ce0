"""Where the checkpoints of a plan are: here, with their files and sizes, or elsewhere, as far as a question tells.

Nothing is downloaded: of a remote checkpoint one request asks for its size. No answer is no error, a refusal is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mergeline.checkpoints.files import SUFFIXES, checkpoint_files, choose_weights, companions, is_index, weight_map
from mergeline.checkpoints.folders import TransientError
from mergeline.checkpoints.listing import Listing, list_folder
from mergeline.checkpoints.readers import Reader
from mergeline.checkpoints.sources import path_of, stated_size
from mergeline.checkpoints.transfer import shown
from mergeline.errors import InputError
from mergeline.plan_surroundings import is_registered
from mergeline.preflight.findings import Source
from mergeline.redaction import expand

PATIENCE = 10.0  # seconds for all questions to other machines together


def local_path(uri: str) -> Path | None:
    """The path that a uri means on this machine, None for one that names another place."""
    if is_registered(uri):
        return None
    if "://" not in uri:
        return Path(uri).expanduser()
    return Path(path_of(uri)) if uri.startswith("file://") else None


def describe(name: str, uri: str, path: Path, reader: Reader | None) -> Source:
    """A checkpoint that is here. reader: None where it could not be opened."""
    files = _files(path)
    weights = [file for file in files if file.name.endswith(SUFFIXES)]
    known = {}
    if reader is not None:
        counted = [tensor for tensor in reader.names() if tensor not in reader.aliases()]
        sizes = {tensor: _size(reader.shape(tensor)) for tensor in counted}
        dtypes = {str(reader.dtype(tensor)).removeprefix("torch.") for tensor in counted if sizes[tensor] > 1}
        known = {"tensors": len(counted), "parameters": sum(sizes.values()), "dtypes": ", ".join(sorted(dtypes))}
    return Source(
        name,
        shown(uri),
        path,
        shards=len(weights),
        bytes=sum(file.stat().st_size for file in files),
        **known,  # type: ignore[arg-type]
    )


def _files(path: Path) -> list[Path]:
    if path.is_dir() or (is_index(path.name) and path.is_file()):
        return list(checkpoint_files(path).values())
    return [path]


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def ask(uris: Mapping[str, str], *, patience: float = PATIENCE) -> list[Source]:
    """Checkpoints elsewhere by name -> uri, asked for their sizes all at once.

    Who does not answer stays unknown; what a download would not get either, however often it is tried, is lost.
    """
    answers: dict[str, Source] = {}

    def question(name: str, uri: str) -> None:
        answers[name] = _ask_one(name, uri)

    threads = [threading.Thread(target=question, args=item, daemon=True) for item in uris.items()]
    for thread in threads:
        thread.start()
    end = time.monotonic() + patience
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return [answers.get(name) or Source(name, shown(uri), None, note="no answer in time") for name, uri in uris.items()]


def _ask_one(name: str, uri: str) -> Source:
    try:
        shards, size, note = _remote(expand(uri))
    except (InputError, TransientError) as fault:
        note = str(fault).removeprefix(f"{shown(uri)}: ")
        return Source(name, shown(uri), None, note=note, lost=isinstance(fault, InputError))
    except Exception as fault:  # a file system of fsspec may raise anything; pre-flight only loses a number
        return Source(name, shown(uri), None, note=f"cannot be asked ({type(fault).__name__})")
    return Source(name, shown(uri), None, shards=shards, bytes=size, note=note)


def _remote(uri: str) -> tuple[int | None, int | None, str]:
    """Files of weights, bytes in all, and a note."""
    if is_registered(uri):
        return None, None, "in MLflow, which only a run asks"
    listing = list_folder(uri)
    if listing is None:
        if is_index(uri.partition("?")[0]):
            return None, None, "an index of shards on a web server, which only a download tells the size of"
        return 1, stated_size(uri), ""
    chosen = listing.chosen or choose_weights(listing.files, listing.name)
    weights = _shards(listing, chosen) if is_index(chosen) else [chosen]
    sizes = [listing.files[name].size for name in {*weights, *companions(listing.files), chosen}]
    known = [size for size in sizes if size is not None]
    return len(weights), sum(known) if len(known) == len(sizes) else None, ""


def _shards(listing: Listing, index: str) -> list[str]:
    """The shards of an index: as it names them where it lies here (the hub's cache), else all files of its kind."""
    local = Path(listing.files[index].uri)
    if local.is_file():
        return sorted(set(weight_map(local).values()))
    ending = index.removesuffix(".index.json").rpartition(".")[2]
    return sorted(name for name in listing.files if name.endswith(f".{ending}"))


Locate = Callable[[str], Path | None]


def located(uri: str, sha256: str | None, held: Locate) -> Path | None:
    """Where a checkpoint already lies: at its own path, or, pinned and fetched before, where `held(sha256)` says."""
    path = local_path(uri)
    if path is not None:
        return path
    return held(sha256) if sha256 else None
