"""Fetch a checkpoint that may be many files: a folder, a repository of the hub, the index of shards on a web server.

The files gather in `.<name>.part/` beside the destination, which gets its name when all are there and verified. What
an interrupted attempt finished is kept where the source says that it is still the same, and what it began goes on.
"""

import re
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from mergeline.checkpoints.atomic import sha256_of
from mergeline.checkpoints.files import SUFFIXES, choose_weights, companions, digest_of_files, is_index, weight_map
from mergeline.checkpoints.formats import kind_of
from mergeline.checkpoints.listing import OPTIONAL, Remote, list_folder, sibling
from mergeline.checkpoints.sources import Progress, checked_pin, fetch
from mergeline.checkpoints.transfer import TransientError, shown
from mergeline.errors import InputError

__all__ = ["TransientError", "fetch_checkpoint"]

AT_ONCE = 4  # files of one checkpoint that travel together


def fetch_checkpoint(
    uri: str,
    destination: str | Path,
    *,
    sha256: str | None = None,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Copy a checkpoint, of one file or of many, into the folder `destination`; returns the file in it, or the folder.

    uri: any file that `fetch` takes (one without a known suffix is recognised by its content), a local folder, a
    file:// or fsspec folder, hf://org/repo[@revision][/folder], or the address of an index.json, whose shards lie
    beside it. Of a folder come the weights that `open_checkpoint` chooses, and what goes along with them (config,
    tokenizer).
    sha256: of the file, or of many what `digest_of_files` gives, which is that of the output of `sha256sum` on them.
    max_bytes: of all files together. progress: called with (bytes so far, bytes in all or None).
    Files of the hub are verified by the hub's own digests, and all taken from one commit. Errors as of `fetch`:
    after a TransientError the same call goes on where it stopped; an InputError leaves nothing behind.
    """
    destination = Path(destination)
    pin = checked_pin(sha256, shown(uri))
    destination.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(destination.with_name(f".{destination.name}.lock")):
        gathering = _Gathering(destination.with_name(f".{destination.name}.part"), max_bytes, progress)
        try:
            single = _gather(uri, gathering, pin)
        except InputError:
            shutil.rmtree(gathering.folder, ignore_errors=True)
            raise
        gathering.publish(destination)
    return destination / single if single else destination


def _gather(uri: str, gathering: "_Gathering", pin: str | None) -> str | None:
    """Bring all files of a checkpoint together; the name of the file if it is only one."""
    listing, index = list_folder(uri), None
    if listing is None:
        name = _name_of(uri)
        known = name.endswith(SUFFIXES)
        gathering.fetch({name: Remote(uri, sha256=pin if known else None)})
        if not (known or is_index(name)):
            name = gathering.rename(name, "model" + kind_of(gathering.folder / name, shown(uri)))
        if not is_index(name):
            gathering.verify(pin, uri)
            return name
        index = name
        shards = sorted(set(weight_map(gathering.folder / index).values()))
        gathering.fetch({shard: sibling(uri, shard) for shard in shards})
        gathering.fetch({companion: sibling(uri, companion) for companion in OPTIONAL}, optional=True)
    else:
        chosen = listing.chosen or choose_weights(listing.files, listing.name)
        gathering.fetch({chosen: listing.remote(chosen)})
        wanted = {*companions(listing.files)} - {chosen}
        if is_index(chosen):
            wanted |= set(weight_map(gathering.folder / chosen).values())
        gathering.fetch({name: listing.remote(name) for name in sorted(wanted)})
    gathering.verify(pin, uri)
    return None


def _name_of(uri: str) -> str:
    try:
        path = unquote(urlsplit(uri).path) if "://" in uri else uri
    except ValueError as error:
        raise InputError(f"{shown(uri)}: the address leads nowhere ({error}); check it") from None
    return re.sub(r"[^\w.-]", "_", path.rstrip("/").rpartition("/")[2]).lstrip(".") or "checkpoint"


class _Gathering:
    """The folder in which the files of one checkpoint come together, and how many bytes they are."""

    def __init__(self, folder: Path, max_bytes: int | None, progress: Progress | None) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._progress = progress
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._done: dict[str, int] = {}
        self._totals: dict[str, int | None] = {}
        self._fetched: dict[str, str] = {}  # original name -> present name
        folder.mkdir(exist_ok=True)

    def fetch(self, remotes: Mapping[str, Remote], *, optional: bool = False) -> None:
        """Fetch files, several at once. optional: those that are not there are left out."""
        for name, remote in remotes.items():
            self._totals[name] = remote.size
        self._refuse_above(sum(size or 0 for size in self._totals.values()), next(iter(remotes.values()), None))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            running = [pool.submit(self._fetch_one, name, remote, optional) for name, remote in remotes.items()]
            try:
                done, _ = wait(running, return_when=FIRST_EXCEPTION)
            except BaseException:
                self._give_up(pool)
                raise
            if any(isinstance(future.exception(), InputError) for future in done):
                self._give_up(pool)
        faults = [fault for future in running if not future.cancelled() and (fault := future.exception())]
        faults.sort(key=lambda fault: not isinstance(fault, InputError))
        faults = [fault for fault in faults if not isinstance(fault, _StoppedError)]
        if faults:
            raise faults[0]

    def _give_up(self, pool: ThreadPoolExecutor) -> None:
        """Nothing of what is under way will be needed."""
        self._stop.set()
        pool.shutdown(wait=False, cancel_futures=True)

    def rename(self, name: str, better: str) -> str:
        """Give a fetched file the name that its content deserves."""
        if better != name:
            shutil.copyfile(self.folder / name, self.folder / better)  # the next attempt looks for the first name
            self._fetched[name] = better
        return better

    def verify(self, pin: str | None, uri: str) -> None:
        """Compare the digest of all files with the expected one. Raises InputError where they differ."""
        if pin is None:
            return
        digests = {name: sha256_of(self.folder / name) for name in self._fetched.values()}
        single = len(digests) == 1 and not any(is_index(name) for name in digests)
        found = next(iter(digests.values())) if single else digest_of_files(digests)
        if found != pin and not (single and digest_of_files(digests) == pin):
            raise InputError(
                f"{shown(uri)}: has sha256 {found}, expected {pin}; it is not what was pinned: "
                "check the address, or pin the new digest if you trust the new files"
            )

    def publish(self, destination: Path) -> None:
        """Give the folder its name, with nothing in it but the files that were fetched."""
        kept = set(self._fetched.values())
        for path in self.folder.iterdir():
            if path.name not in kept:
                path.unlink()
        if destination.exists():
            shutil.rmtree(destination)
        self.folder.rename(destination)

    def _fetch_one(self, name: str, remote: Remote, optional: bool) -> None:
        try:
            fetch(
                remote.uri,
                self.folder / name,
                sha256=remote.sha256,
                max_bytes=self._max_bytes,
                progress=lambda done, total: self._count(name, remote, done, total),
                keep=True,
            )
        except InputError:
            self._refuse_above(sum(self._done.values()), remote)
            if not optional:
                raise
            self._totals.pop(name, None)
            return
        if optional and re.match(rb"\s*<(!doctype|html)", (self.folder / name).read_bytes()[:64], re.IGNORECASE):
            return  # a server that answers every question with a page
        with self._lock:
            self._fetched[name] = name
            self._done[name] = (self.folder / name).stat().st_size
            size = sum(self._done.values())
        self._refuse_above(size, remote)

    def _count(self, name: str, remote: Remote, done: int, total: int | None) -> None:
        if self._stop.is_set():
            raise _StoppedError
        with self._lock:
            self._done[name] = done
            self._totals[name] = total
            size, totals = sum(self._done.values()), list(self._totals.values())
        self._refuse_above(size, remote)
        if self._progress:
            self._progress(size, None if None in totals else sum(filter(None, totals)))

    def _refuse_above(self, size: int, remote: Remote | None) -> None:
        if self._max_bytes is not None and size > self._max_bytes:
            name = shown(remote.uri) if remote else self.folder.name
            raise InputError(
                f"{name}: the checkpoint has {size} bytes or more, {self._max_bytes} are allowed; "
                "raise the limit or check it"
            )


class _StoppedError(Exception):
    """Another file of the checkpoint failed for good."""
