"""Records of runs that MLflow does not have yet, and which of them a killed process left unfinished.

.mlflow/pending/EXPERIMENT/IDENTITY/    record.json, and copies of the files that go with it
.mlflow/unfinished/…/IDENTITY           held by the process that makes that record; free after its death
"""

import fcntl
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from tasks._env import state_directory
from tasks.locks import exclusive

RECORD = "record.json"
_DRAFT = ".draft-"


def one_sender() -> AbstractContextManager[None]:
    """Hold this to send or remove records: nobody else does then."""
    return exclusive(_home() / "pending.lock")


def keep(experiment: str, identity: str, files: Sequence[Path], text: Callable[[list[Path]], str]) -> Path:
    """Put a record down, whole or not at all, with copies of its files: the next run would overwrite them.

    text: the record, given where the copies lie. OSError where there is no room.
    """
    home = _folder(experiment)
    with one_sender():
        for dead in home.glob(f"{_DRAFT}*"):
            _settle(dead)
        draft, folder = home / f"{_DRAFT}{identity}", home / identity
        draft.mkdir(parents=True)
        try:
            for number, path in enumerate(files):
                (draft / str(number)).mkdir()
                (shutil.copytree if path.is_dir() else shutil.copyfile)(path, draft / str(number) / path.name)
            copies = [folder / str(number) / path.name for number, path in enumerate(files)]
            (draft / "unfinished").write_text(text(copies), encoding="utf-8")
            (draft / "unfinished").rename(draft / RECORD)
            remove(folder)  # of an earlier attempt; whoever finds the whole draft without it puts that in its place
            draft.rename(folder)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    return folder


def _settle(draft: Path) -> None:
    """What a dead process left: a whole record gets its place where that is free, the rest goes. Call as one sender."""
    folder = draft.with_name(draft.name.removeprefix(_DRAFT))
    if (draft / RECORD).is_file() and not (folder / RECORD).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    shutil.rmtree(draft, ignore_errors=True)


def waits(experiment: str, identity: str) -> bool:
    """Whether a record of that identity is still to be sent."""
    return (_folder(experiment) / identity / RECORD).is_file()


def remove(folder: Path) -> None:
    """Remove the folder of a record, its text first: without that nobody takes it for one."""
    (folder / RECORD).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def pending(experiment: str | None = None) -> list[Path]:
    """The folders of the records that are still to be sent (of one experiment, or of all), the oldest first."""
    found = []
    for folder in [_folder(experiment)] if experiment else (_home() / "pending").glob("*"):
        if any(folder.glob(f"{_DRAFT}*/{RECORD}")):
            with one_sender():  # whoever may be making it just now is done
                for draft in folder.glob(f"{_DRAFT}*"):
                    _settle(draft)
        for file in folder.glob(f"[!.]*/{RECORD}"):
            with suppress(FileNotFoundError):  # it was sent a moment ago
                found.append((file.stat().st_mtime_ns, file.parent))
    return [folder for _, folder in sorted(found)]


@contextmanager
def interrupted_or_new(work: str) -> Iterator[str]:
    """The identity of the record of some work: that of an attempt which was killed within this block, or a new one."""
    folder = _home() / "unfinished" / hashlib.sha256(work.encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if (handle := _take(file, os.O_RDWR)) is not None:
            break
    else:
        file = folder / uuid.uuid4().hex
        handle = _take(file, os.O_RDWR | os.O_CREAT)
    assert handle is not None, "nobody else knows a name that was made just now"
    try:
        yield file.name
        file.unlink()
    finally:
        os.close(handle)


def _take(file: Path, flags: int) -> int | None:
    """Hold the file; None where another process does, or did until it was done."""
    try:
        handle = os.open(file, flags, 0o644)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    if os.fstat(handle).st_nlink == 0:
        os.close(handle)
        return None
    return handle


def _folder(experiment: str) -> Path:
    return _home() / "pending" / re.sub(r"[^\w\-. :]", "_", experiment)


def _home() -> Path:
    return state_directory() / ".mlflow"
