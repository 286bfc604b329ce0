"""Write a checkpoint as one safetensors file or as shards: complete or not at all, equal tensors to equal bytes."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from mergeline.checkpoints.atomic import publish, sha256_of
from mergeline.checkpoints.encoding import NAMES, encode
from mergeline.checkpoints.formats import INDEX
from mergeline.errors import InputError


@dataclass(frozen=True)
class Manifest:
    """What was written."""

    files: dict[str, str]  # file name -> sha256; the index of a sharded checkpoint is one of them
    sha256: str  # of the file, or, of several, of their lines "sha256  name" in the order of names
    tensors: int
    parameters: int  # numbers in all tensors, buffers included
    bytes: int  # of all files together


@dataclass(frozen=True)
class _Shard:
    path: Path
    sha256: str
    names: list[str]
    parameters: int
    data_bytes: int


def write_checkpoint(
    path: str | Path,
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Manifest:
    """Write tensors to `path`, and replace what was there only when all is on the disk.

    path: a .safetensors file, or a folder, in which the file is called model.safetensors. tensors: a mapping, written
    in the order of names, or pairs, taken as they come; no more of them than one shard is held in memory. dtype:
    what floating tensors become. max_shard_size: bytes of tensors in a file; a larger model becomes
    model-00001-of-00003.safetensors, ... and model.safetensors.index.json, which comes last: without it there is no
    checkpoint. metadata: kept in the header of each file.

    Raises InputError for NaN or infinite values, also those that `dtype` brings about, for what is no dense tensor,
    for a name given twice, and for no tensors at all; then nothing is left behind.
    """
    path = Path(path)
    target = path / "model.safetensors" if path.suffix == "" or path.is_dir() else path
    _check_options(target, dtype, max_shard_size, metadata)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.stem}-", dir=target.parent) as scratch:
        ready = _ready(tensors, dtype, target)
        shards = [
            _write_shard(Path(scratch) / str(number), batch, {"format": "pt"} | dict(metadata or {}))
            for number, batch in enumerate(_batches(ready, max_shard_size))
        ]
        if not shards:
            raise InputError(f"{target}: no tensors were given; there is nothing to write (is an iterator used up?)")
        return _publish(shards, target, Path(scratch))


def _check_options(
    target: Path, dtype: torch.dtype | None, max_shard_size: int | None, metadata: Mapping[str, str] | None
) -> None:
    if target.suffix != ".safetensors":
        raise InputError(f"{target}: checkpoints are written as safetensors; let the name end in .safetensors")
    if dtype is not None and not (dtype.is_floating_point and dtype in NAMES):
        raise InputError(f"{target}: dtype {dtype} is not a floating dtype; use torch.float32, float16 or bfloat16")
    if max_shard_size is not None and max_shard_size <= 0:
        raise InputError(f"{target}: max_shard_size is {max_shard_size}; give a number of bytes above 0, or None")
    for key, value in (metadata or {}).items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise InputError(f"{target}: metadata {key!r} is not a string to a string; safetensors keeps strings only")


def _ready(
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], dtype: torch.dtype | None, target: Path
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors as they will stand in the file, each checked."""
    pairs = ((name, tensors[name]) for name in sorted(tensors, key=str)) if isinstance(tensors, Mapping) else tensors
    seen: set[str] = set()
    for name, tensor in pairs:
        if not isinstance(name, str) or name == "__metadata__" or name in seen:
            raise InputError(f"{target}: tensor name {name!r} is {'given twice' if name in seen else 'not usable'}")
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.dtype not in NAMES:
            raise InputError(f"{target}: '{name}' is not a dense tensor of a dtype that safetensors knows; convert it")
        seen.add(name)
        yield name, _finite(tensor.detach(), dtype, name, target)


def _finite(tensor: Tensor, dtype: torch.dtype | None, name: str, target: Path) -> Tensor:
    """The tensor in the wanted dtype; InputError if it holds NaN or infinity then."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    written = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
    broken = _count_not_finite(written)
    if broken and not _count_not_finite(tensor):
        raise InputError(
            f"{target}: {broken} of {tensor.numel()} values of tensor '{name}' do not fit into {written.dtype}; "
            "write bfloat16 or float32"
        )
    if broken:
        raise InputError(
            f"{target}: {broken} of {tensor.numel()} values of tensor '{name}' are NaN or infinite; nothing was written"
        )
    return written


def _count_not_finite(tensor: Tensor) -> int:
    checkable = tensor.float() if tensor.element_size() == 1 else tensor  # torch cannot check all 8-bit floats
    return tensor.numel() - int(torch.isfinite(checkable).sum())


def _batches(pairs: Iterable[tuple[str, Tensor]], max_bytes: int | None) -> Iterator[dict[str, Tensor]]:
    """Group tensors into shards of at most max_bytes, or of one tensor that is larger."""
    batch: dict[str, Tensor] = {}
    size = 0
    for name, tensor in pairs:
        if batch and max_bytes is not None and size + tensor.nbytes > max_bytes:
            yield batch
            batch.clear()  # also in the hands of the caller: only one shard is in memory
            size = 0
        batch[name] = tensor
        size += tensor.nbytes
    if batch:
        yield batch


def _write_shard(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> _Shard:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in encode(tensors, metadata):
            file.write(piece)
            digest.update(piece)
        file.flush()
        os.fsync(file.fileno())  # the slow part, done before the first file gets its name
    return _Shard(
        path=path,
        sha256=digest.hexdigest(),
        names=list(tensors),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        data_bytes=sum(tensor.nbytes for tensor in tensors.values()),
    )


def _publish(shards: list[_Shard], target: Path, scratch: Path) -> Manifest:
    """Give the finished files their names, then remove those of an older checkpoint of this name."""
    if len(shards) == 1:
        publish(shards[0].path, target)
        files = {target.name: shards[0].sha256}
    else:
        files = _publish_shards(shards, target, scratch)
    _remove_older(target, keep=files)
    return Manifest(
        files=files,
        sha256=shards[0].sha256 if len(shards) == 1 else _digest_of_all(files),
        tensors=sum(len(shard.names) for shard in shards),
        parameters=sum(shard.parameters for shard in shards),
        bytes=sum((target.parent / name).stat().st_size for name in files),
    )


def _publish_shards(shards: list[_Shard], target: Path, scratch: Path) -> dict[str, str]:
    """Name the shards, then write their index. Returns file name -> sha256."""
    count, stem, index = len(shards), target.stem, target.with_name(target.stem + INDEX)
    named = {f"{stem}-{i:05}-of-{count:05}.safetensors": shard for i, shard in enumerate(shards, start=1)}
    draft = scratch / "index"
    draft.write_text(_index_text(named))
    index.unlink(missing_ok=True)  # an old index over new shards would be a checkpoint that nobody wrote
    try:
        for name, shard in named.items():
            publish(shard.path, target.with_name(name))
        publish(draft, index)
    except BaseException:
        for name in named:
            target.with_name(name).unlink(missing_ok=True)
        raise
    return {name: shard.sha256 for name, shard in named.items()} | {index.name: sha256_of(index)}


def _index_text(named: dict[str, _Shard]) -> str:
    places = {tensor: name for name, shard in named.items() for tensor in shard.names}
    total = sum(shard.data_bytes for shard in named.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    return json.dumps(index, indent=2, ensure_ascii=False) + "\n"


def _digest_of_all(files: dict[str, str]) -> str:
    return hashlib.sha256("".join(f"{files[name]}  {name}\n" for name in sorted(files)).encode()).hexdigest()


def _remove_older(target: Path, keep: Mapping[str, str]) -> None:
    """A reader finds the single file first, then the index: in that order an older one may mislead it."""
    shard = re.compile(re.escape(target.stem) + r"-\d{5}-of-\d{5}\.safetensors")
    shards = [path for path in target.parent.iterdir() if shard.fullmatch(path.name)]
    for path in (target, target.with_name(target.stem + INDEX), *shards):
        if path.name not in keep:
            path.unlink(missing_ok=True)
