"""The content store: every intermediate result, named by the sha256 of its bytes.

A stage writes files or folders here and returns an `ArtifactRef`. An artifact appears whole or not at all and is
read-only. No reference can be made to one that is missing or was altered, so no cached result is trusted blindly.

    .store/ab/abcd….safetensors    a file
    .store/ab/abcd….dir/           a folder
    .store/tmp/                    drafts; those of dead processes are swept by the next one that writes
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from tasks._env import state_directory
from tasks.locks import exclusive
from tasks.usage import note_use, undisturbed

_DRAFT = ".draft-"
_FOLDER_SUFFIX = ".dir"  # kept for folders: a file that holds a folder's listing has the same digest


class ArtifactRef(BaseModel):
    """What travels between stages: which bytes, of which kind. ValueError where the store does not hold them intact.

    kind: what the bytes mean ("checkpoint", "similarity"). metadata: plain facts for people and reports; it is no part
    of a cache key, so no stage may compute with what the bytes do not say.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    kind: str
    suffix: str = Field(default="", pattern=r"^(\.[A-Za-z0-9]+)*$")
    metadata: dict[str, JsonValue] = {}

    @property
    def identity(self) -> str:
        """The artifact's name in the store: its digest and its suffix (which tells a reader the format)."""
        return f"{self.sha256}{self.suffix}"

    @property
    def path(self) -> Path:
        """Where the bytes lie: a file, or a folder."""
        return _place(self.sha256, self.suffix)

    @model_validator(mode="after")
    def _is_intact(self) -> Self:
        self.verify()
        return self

    def verify(self) -> None:
        """Raise ValueError if the artifact is missing or not what its name says. Cheap while the file is unchanged.

        It counts as used, and is not evicted while this process lives.
        """
        with undisturbed():
            try:
                found = digest(self.path)
            except OSError as error:
                raise ValueError(f"artifact {self.identity} ({self.kind}) is missing from the store") from error
            if found != self.sha256:
                raise ValueError(f"artifact {self.identity} ({self.kind}) was altered in the store")
            note_use(self.identity, self.kind)


def store_directory() -> Path:
    """MERGELINE_STATE/.store."""
    return state_directory() / ".store"


def held(sha256: str) -> Path | None:
    """Where a file of that digest lies in the store, whatever its suffix; it is not read."""
    found = sorted((store_directory() / sha256[:2]).glob(f"{sha256}.*"))
    return next((path for path in found if path.is_file()), None)


def held_folder(sha256: str) -> Path | None:
    """Where a folder of that digest lies in the store; it is not read."""
    place = _place(sha256, _FOLDER_SUFFIX)
    return place if place.is_dir() else None


def put_file(write: Callable[[Path], object], suffix: str, kind: str, **metadata: JsonValue) -> ArtifactRef:
    """Store the file that `write(path)` makes. An exception in `write` leaves nothing behind."""
    with _workspace() as folder:
        draft = folder / f"artifact{suffix}"
        write(draft)
        if draft.is_symlink() or not draft.is_file():
            raise ValueError(f"nothing to store as {kind}: no file was written to the path given")
        found = digest(draft)
        _settle(draft)
        place = _place(found, suffix)
        with undisturbed():
            place.parent.mkdir(exist_ok=True)
            draft.replace(place)
            _sync(place.parent)
            _remember(place, found)
            return ArtifactRef(sha256=found, kind=kind, suffix=suffix, metadata=metadata)


def put_directory(write: Callable[[Path], object], kind: str, **metadata: JsonValue) -> ArtifactRef:
    """Store the folder that `write(folder)` fills; the folder is there and empty. Files count, empty folders do not."""
    with _workspace() as workspace:
        draft = workspace / "artifact"
        draft.mkdir()
        write(draft)
        digests = _file_digests(draft)
        if not digests:
            raise ValueError(f"nothing to store as {kind}: no file was written into the folder given")
        found = digest(draft)
        for relative in digests:
            _settle(draft / relative)
        place = _place(found, _FOLDER_SUFFIX)
        # unlike a file, a folder cannot be renamed over another one
        with undisturbed(), exclusive(_drafts() / "folders.lock"):
            place.parent.mkdir(exist_ok=True)
            if not _holds(place, found):
                if place.exists():
                    place.rename(workspace / "altered")
                draft.rename(place)
                _sync(place.parent)
                for relative, value in digests.items():
                    _remember(place / relative, value)
            return ArtifactRef(sha256=found, kind=kind, suffix=_FOLDER_SUFFIX, metadata=metadata)


def take_file(path: Path, kind: str, **metadata: JsonValue) -> ArtifactRef:
    """Store a copy of a file that is already there. Nothing is copied when the store has its content."""
    found = digest(path)
    with undisturbed():
        if _holds(_place(found, path.suffix), found):
            return ArtifactRef(sha256=found, kind=kind, suffix=path.suffix, metadata=metadata)
    return put_file(lambda draft: shutil.copyfile(path, draft), path.suffix, kind, **metadata)


def put_json(value: JsonValue, kind: str, **metadata: JsonValue) -> ArtifactRef:
    """Store plain data as JSON (equal data, equal bytes); ValueError for NaN and infinities."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    return put_file(lambda draft: draft.write_text(f"{text}\n", encoding="utf-8"), ".json", kind, **metadata)


def read_json(ref: ArtifactRef) -> JsonValue:
    """The plain data that `put_json` stored."""
    return json.loads(ref.path.read_text(encoding="utf-8"))


def publish(ref: ArtifactRef, destination: Path) -> Path:
    """Copy an artifact to where people and DVC look for it; whoever reads there sees the old one or the new one, whole.

    A copy, because DVC replaces and deletes its outputs. A folder is exchanged in two renames, so for an instant there
    is none. Raises ValueError if the artifact was altered since the reference was made.
    """
    ref.verify()
    destination.parent.mkdir(parents=True, exist_ok=True)
    with _workspace(destination.parent) as aside:
        draft = aside / "new"
        if ref.path.is_dir():
            shutil.copytree(ref.path, draft, copy_function=shutil.copyfile)
            for relative in _file_digests(draft):
                _sync(draft / relative)
            if destination.exists():
                destination.rename(aside / "old")
            draft.rename(destination)
        else:
            shutil.copyfile(ref.path, draft)
            _sync(draft)
            draft.replace(destination)
        _sync(destination.parent)
    return destination


def publish_files(ref: ArtifactRef, folder: Path) -> list[Path]:
    """Copy the files of a stored folder into a folder beside what else lies there, the index of shards last.

    Each file is the old one or the new one, whole. Raises ValueError if the artifact was altered.
    """
    ref.verify()
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(_file_digests(ref.path), key=lambda name: (name.endswith(".index.json"), name))
    with _workspace(folder) as aside:
        for name in names:
            draft = aside / Path(name).name
            shutil.copyfile(ref.path / name, draft)
            _sync(draft)
            (folder / name).parent.mkdir(exist_ok=True)
            draft.replace(folder / name)
    _sync(folder)
    return [folder / name for name in names]


def file_digests(ref: ArtifactRef, name: str) -> dict[str, str]:
    """File name -> sha256 of an artifact; a single file is to be called `name`."""
    return dict(sorted(_file_digests(ref.path).items())) if ref.path.is_dir() else {name: ref.sha256}


# --- digests ---------------------------------------------------------------------------------------------------------

_Stamp = tuple[str, int, int, int]
_known: dict[_Stamp, str] = {}  # so that a file is read once per process, not once per reference to it


def digest(path: Path) -> str:
    """The sha256 of a file; of a folder, that of the sorted list of its files' paths and digests.

    OSError where it cannot be read, ValueError for a folder that holds links.
    """
    if not path.is_dir():
        return _file_digest(path)
    listing = json.dumps(sorted(_file_digests(path).items()))
    return hashlib.sha256(listing.encode()).hexdigest()


def _file_digest(path: Path) -> str:
    stamp = _stamp(path)
    if stamp not in _known:
        with path.open("rb") as file:
            _known[stamp] = hashlib.file_digest(file, "sha256").hexdigest()
    return _known[stamp]


def _file_digests(folder: Path) -> dict[str, str]:
    digests = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise ValueError(f"a stored folder holds files, not links: {path.name}")
        if path.is_file():
            digests[path.relative_to(folder).as_posix()] = _file_digest(path)
    return digests


def _remember(path: Path, value: str) -> None:
    _known[_stamp(path)] = value


def _stamp(path: Path) -> _Stamp:
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _holds(place: Path, value: str) -> bool:
    try:
        return digest(place) == value
    except (OSError, ValueError):
        return False


# --- places ----------------------------------------------------------------------------------------------------------


def _place(value: str, suffix: str) -> Path:
    return store_directory() / value[:2] / f"{value}{suffix}"


def _drafts() -> Path:
    return store_directory() / "tmp"


@contextmanager
def _workspace(beside: Path | None = None) -> Iterator[Path]:
    """A private folder on the store's disk (or in another folder), removed at the end, or else by the next one.

    Its flock tells others that its owner lives.
    """
    drafts = beside or _drafts()
    with exclusive(_drafts() / "sweep.lock"):  # nobody sweeps a folder between its making and its locking
        sweep(drafts)
        folder = Path(tempfile.mkdtemp(dir=drafts, prefix=_DRAFT))
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def sweep(drafts: Path) -> None:
    """Remove the drafts of processes that died while they wrote."""
    for folder in filter(Path.is_dir, drafts.glob(f"{_DRAFT}*")):
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # its owner was done with it a moment ago
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # its owner lives
        finally:
            os.close(handle)


def _settle(path: Path) -> None:
    """On disk before it has a name that counts, and read-only from then on."""
    _sync(path)
    path.chmod(0o444)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
