"""A checkpoint in the making: its files lie beside the target, at full size, until every byte is there.

Several processes may fill one output: `prepare` it, `write_range` from anywhere that sees the folder, `publish` it.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from tempfile import mkdtemp
from threading import get_ident

import torch
from pydantic import ByteSize, TypeAdapter, ValidationError

from mergeline.checkpoints import atomic
from mergeline.checkpoints.encoding import NAMES, Spec, data_of, encode_header, nbytes
from mergeline.checkpoints.files import SUFFIXES, digest_of_files, is_index
from mergeline.checkpoints.formats import INDEX
from mergeline.checkpoints.streams import FlatPiece, check_specs, checked, written_as
from mergeline.errors import InputError
from mergeline.threads import one_thread

Ranges = list[tuple[str, int, int]]  # name, first entry, end


@dataclass(frozen=True)
class Manifest:
    """What was written."""

    files: dict[str, str]  # file name -> sha256; the index of a sharded checkpoint is one of them
    sha256: str  # of the file, or, of several, of their lines "sha256  name" in the order of names
    tensors: int
    parameters: int  # numbers in all tensors, buffers included
    bytes: int  # of all files together


@dataclass(frozen=True)
class Shard:
    """One file. places: tensor name -> where its data begins, in the order of the file."""

    draft: Path
    header: bytes
    places: dict[str, int]


@dataclass(frozen=True)
class Layout:
    """Where every tensor goes; it can be sent to other processes. dtype: what floating tensors become, or None.

    made: folders that were not there before, the innermost first.
    """

    target: Path
    scratch: Path
    specs: dict[str, Spec]
    dtype: torch.dtype | None
    shards: tuple[Shard, ...]
    made: tuple[Path, ...] = ()

    def shard_of(self) -> dict[str, Shard]:
        """Tensor name -> its file."""
        return {name: shard for shard in self.shards for name in shard.places}


def prepare(
    path: str | Path,
    specs: Mapping[str, Spec],
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str | None = None,
    metadata: Mapping[str, str] | None = None,
    scratch: Path | None = None,
) -> Layout:
    """Plan the files of a checkpoint and lay them out beside the target: headers written, space for all data kept.

    Arguments as of `write_checkpoint`; specs: name -> shape and dtype, in the order in which tensors fill the shards.
    scratch: a folder on the target's disk to lay them out in, which nobody else prepares at this moment; files that an
    earlier call with the same arguments laid out there are taken up again, with all that was written to them.
    What is not published in the end must be given up (`abandon`).
    """
    target = target_of(path)
    check_options(target, dtype, metadata)
    check_specs(specs, target)
    most = shard_bytes(target, max_shard_size)
    with folder_for(target) as made, ExitStack() as at_fault:
        if scratch is None:
            scratch = Path(mkdtemp(prefix=f".{target.stem}-", dir=target.parent))
            at_fault.callback(shutil.rmtree, scratch)
        scratch.mkdir(parents=True, exist_ok=True)
        layout = plan(target, scratch, specs, dtype=dtype, max_shard_size=most, metadata=metadata)
        at_fault.pop_all()
        return replace(layout, made=made)


def plan(
    target: Path,
    scratch: Path,
    specs: Mapping[str, Spec],
    *,
    dtype: torch.dtype | None,
    max_shard_size: int | None,
    metadata: Mapping[str, str] | None,
) -> Layout:
    """The layout, its files made in the folder `scratch` where they are not there yet."""
    written = {name: written_as(spec, dtype) for name, spec in specs.items()}
    shards = []
    for number, names in enumerate(_batches(written, max_shard_size)):
        batch = {name: written[name] for name in names}
        header, places = encode_header(batch, {"format": "pt"} | dict(metadata or {}))
        shards.append(Shard(scratch / str(number), header, places))
        if shards[-1].draft.exists():
            continue
        unfinished = shards[-1].draft.with_suffix(".new")
        with unfinished.open("wb") as file:
            file.write(header)
            file.truncate(len(header) + sum(map(nbytes, batch.values())))
        unfinished.rename(shards[-1].draft)
    return Layout(target, scratch, written, dtype, tuple(shards))


def write_range(layout: Layout, pieces: Iterable[FlatPiece]) -> None:
    """Write pieces of tensors to their places. Callable from several processes at once; writing a piece again is fine.

    pieces: (name, index of the first entry, flat tensor). InputError for values that are not finite.
    """
    with one_thread():
        ranges = fill(layout, checked(pieces, layout.dtype, layout.target), sync=True)
    note = _note_of(layout, ranges)
    draft = note.with_suffix(f".{os.getpid()}-{get_ident()}")
    draft.write_text(json.dumps(ranges))
    atomic.publish(draft, note)


def is_written(layout: Layout, ranges: Sequence[tuple[str, int, int]]) -> bool:
    """Whether one call of `write_range` has written exactly these ranges, each of them in one piece or several."""
    return _note_of(layout, ranges).exists()


def _note_of(layout: Layout, ranges: Sequence[tuple[str, int, int]]) -> Path:
    digest = hashlib.sha256(json.dumps([list(item) for item in ranges]).encode()).hexdigest()
    return layout.scratch / f"written-{digest}.json"


def publish(layout: Layout) -> Manifest:
    """Give the finished files their names. InputError where some entries were never written; then nothing changes."""
    notes = sorted(layout.scratch.glob("written-*.json"))
    check_complete(layout, [tuple(item) for note in notes for item in json.loads(note.read_text())])
    digests = [atomic.sha256_of(shard.draft) for shard in layout.shards]
    return publish_files(layout, digests)


def abandon(layout: Layout) -> None:
    """Remove what was prepared; no error where nothing is left."""
    shutil.rmtree(layout.scratch, ignore_errors=True)
    _remove_empty(layout.made)


def fill(
    layout: Layout,
    pieces: Iterable[FlatPiece],
    *,
    sync: bool,
    watch: Callable[[Shard, int, memoryview], None] | None = None,
) -> Ranges:
    """Write pieces to their places; returns what was written. watch: sees each piece and its place in the file."""
    ranges: Ranges = []
    shards = layout.shard_of()
    with ExitStack() as stack:
        files: dict[Path, int] = {}
        for name, start, piece in pieces:
            shard = shards[name]
            if shard.draft not in files:
                files[shard.draft] = os.open(shard.draft, os.O_WRONLY)
                stack.callback(os.close, files[shard.draft])
            place = shard.places[name] + start * layout.specs[name][1].itemsize
            data = data_of(piece)
            _write_at(files[shard.draft], place, data)
            if watch:
                watch(shard, place, data)
            _note(ranges, name, start, start + piece.numel())
        for descriptor in files.values() if sync else ():
            os.fsync(descriptor)
    return ranges


def check_complete(layout: Layout, ranges: Iterable[tuple[str, int, int]]) -> None:
    """InputError naming a tensor of which some entries were not written."""
    reached = dict.fromkeys(layout.specs, 0)
    for name, start, stop in sorted(ranges):
        if start <= reached[name]:
            reached[name] = max(reached[name], stop)
    for name, (shape, _) in layout.specs.items():
        if reached[name] != prod(shape):
            raise InputError(
                f"{layout.target}: tensor '{name}' was not written from entry {reached[name]} on; nothing was published"
            )


def publish_files(layout: Layout, digests: list[str]) -> Manifest:
    """Give the finished files their names, then remove those of an older checkpoint of this name."""
    target = layout.target
    for shard in layout.shards:
        atomic.sync(shard.draft)  # the slow part, done before the first file gets its name
    if len(layout.shards) == 1:
        atomic.publish(layout.shards[0].draft, target)
        files = {target.name: digests[0]}
    else:
        files = _publish_shards(layout, digests)
    _remove_older(target, keep=files)
    abandon(layout)
    return Manifest(
        files=files,
        sha256=digests[0] if len(digests) == 1 else digest_of_files(files),
        tensors=len(layout.specs),
        parameters=sum(prod(shape) for shape, _ in layout.specs.values()),
        bytes=sum((target.parent / name).stat().st_size for name in files),
    )


def target_of(path: str | Path) -> Path:
    """The file that a path means: in a folder it is called model.safetensors. Llama-3.2-1B is a folder, too."""
    path = Path(path)
    is_file = path.is_file() or path.suffix.lower() in SUFFIXES
    return path if is_file and not path.is_dir() else path / "model.safetensors"


@contextmanager
def folder_for(target: Path) -> Iterator[tuple[Path, ...]]:
    """Make the folder of a file; what the block leaves empty of it, because it fails, is removed again.

    Yields the folders that were not there before, the innermost first. InputError where it cannot be written to.
    """
    made = tuple(folder for folder in target.parents if not folder.exists())
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            reason = None if os.access(target.parent, os.W_OK) else "it may not be written to"
        except OSError as error:
            reason = str(error.strerror)
        if reason:
            raise InputError(f"{target}: cannot be written into {target.parent} ({reason}); choose another place")
        yield made
    except BaseException:
        _remove_empty(made)
        raise


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # it was not made, or somebody has put something there
            folder.rmdir()


def shard_bytes(target: Path, max_shard_size: int | str | None) -> int | None:
    """The number of bytes that a size stands for, 5GB say, as a plan has it. InputError where it stands for none."""
    if max_shard_size is None:
        return None
    try:
        size = TypeAdapter(ByteSize).validate_python(max_shard_size)
    except ValidationError:
        size = ByteSize(0)
    if size <= 0 or isinstance(max_shard_size, bool):
        raise InputError(
            f"{target}: max_shard_size is {max_shard_size!r}; give a number of bytes above 0, a size like 5GB, or None"
        )
    return int(size)


def check_options(target: Path, dtype: torch.dtype | None, metadata: Mapping[str, str] | None) -> None:
    """InputError for options that cannot be met."""
    if target.suffix != ".safetensors":
        raise InputError(f"{target}: checkpoints are written as safetensors; let the name end in .safetensors")
    if is_index(target.parent.name) or target.parent.suffix == ".safetensor":
        raise InputError(
            f"{target.parent}: is the name of a file, but would be a folder; let a file end in .safetensors"
        )
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype in NAMES):
        raise InputError(f"{target}: dtype {dtype} is not a floating dtype; use torch.float32, float16 or bfloat16")
    for key, value in (metadata or {}).items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise InputError(f"{target}: metadata {key!r} is not a string to a string; safetensors keeps strings only")


def file_sizes(
    path: str | Path,
    specs: Mapping[str, Spec],
    max_shard_size: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, int]:
    """Name -> bytes of the files that a checkpoint would have, the index of shards last; nothing is written."""
    target, batches = target_of(path), _batches(specs, max_shard_size)
    names = [target.name] if len(batches) == 1 else _shard_names(target, len(batches))
    sizes = {}
    for name, tensors in zip(names, batches, strict=True):
        batch = {tensor: specs[tensor] for tensor in tensors}
        header, _ = encode_header(batch, {"format": "pt"} | dict(metadata or {}))
        sizes[name] = len(header) + sum(map(nbytes, batch.values()))
    if len(names) > 1:
        text = _index_text(dict(zip(names, batches, strict=True)), specs)
        sizes[target.stem + INDEX] = len(text.encode())
    return sizes


def _shard_names(target: Path, count: int) -> list[str]:
    return [f"{target.stem}-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


def _batches(specs: Mapping[str, Spec], max_bytes: int | None) -> list[list[str]]:
    """Names grouped into shards of at most max_bytes, or of one tensor that is larger."""
    batches: list[list[str]] = []
    size = 0
    for name, spec in specs.items():
        if not batches or (max_bytes is not None and size + nbytes(spec) > max_bytes):
            batches.append([])
            size = 0
        batches[-1].append(name)
        size += nbytes(spec)
    return batches


def _note(ranges: Ranges, name: str, start: int, stop: int) -> None:
    """Add a range, joined to the last one where it goes on there."""
    if ranges and ranges[-1][0] == name and ranges[-1][2] == start:
        start = ranges.pop()[1]
    ranges.append((name, start, stop))


def _write_at(descriptor: int, place: int, data: memoryview) -> None:
    while data:
        written = os.pwrite(descriptor, data, place)
        data, place = data[written:], place + written


def _publish_shards(layout: Layout, digests: list[str]) -> dict[str, str]:
    """Name the shards, then write their index. Returns file name -> sha256."""
    target = layout.target
    index = target.with_name(target.stem + INDEX)
    named = dict(zip(_shard_names(target, len(layout.shards)), layout.shards, strict=True))
    draft = layout.scratch / "index"
    draft.write_text(_index_text({name: shard.places for name, shard in named.items()}, layout.specs))
    index.unlink(missing_ok=True)  # an old index over new shards would be a checkpoint that nobody wrote
    try:
        for name, shard in named.items():
            atomic.publish(shard.draft, target.with_name(name))
        atomic.publish(draft, index)
    except BaseException:
        for name in named:
            target.with_name(name).unlink(missing_ok=True)
        raise
    return dict(zip(named, digests, strict=True)) | {index.name: atomic.sha256_of(index)}


def _index_text(named: Mapping[str, Iterable[str]], specs: Mapping[str, Spec]) -> str:
    """named: file name -> names of its tensors."""
    places = {tensor: name for name, tensors in named.items() for tensor in tensors}
    index = {"metadata": {"total_size": sum(map(nbytes, specs.values()))}, "weight_map": dict(sorted(places.items()))}
    return json.dumps(index, indent=2, ensure_ascii=False) + "\n"


def _remove_older(target: Path, keep: Mapping[str, str]) -> None:
    """A reader finds the single file first, then the index: in that order an older one may mislead it."""
    shard = re.compile(re.escape(target.stem) + r"-\d{5}-of-\d{5}\.safetensors")
    shards = [path for path in target.parent.iterdir() if shard.fullmatch(path.name)]
    for path in (target, target.with_name(target.stem + INDEX), *shards):
        if path.name not in keep:
            path.unlink(missing_ok=True)
