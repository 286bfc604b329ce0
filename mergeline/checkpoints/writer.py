"""Write a checkpoint as one safetensors file or as shards: complete or not at all, equal tensors to equal bytes."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from mergeline.checkpoints import output
from mergeline.checkpoints.output import Layout, Manifest, Shard
from mergeline.checkpoints.streams import HeldTensors, SpooledTensors, TensorStream, check_specs, checked
from mergeline.threads import one_thread

__all__ = ["Manifest", "write_checkpoint"]


def write_checkpoint(
    path: str | Path,
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]] | TensorStream,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Manifest:
    """Write tensors to `path`, and replace what was there only when all is on the disk.

    path: a .safetensors file; any name without the suffix of a checkpoint file is a folder, in which the file is called
    model.safetensors. tensors: what
    `mergeline.merge` gives, written as it is computed, a piece in memory at a time; or a mapping, written in the order
    of names; or pairs, taken as they come, of which one is held (they wait in a file until the last is known). dtype:
    what floating tensors become. max_shard_size: bytes of tensors in a file, or "5GB"; a larger model becomes
    model-00001-of-00003.safetensors, ... and model.safetensors.index.json, which comes last: without it there is no
    checkpoint. metadata: kept in the header of each file.

    Raises InputError for NaN or infinite values, also those that `dtype` brings about, for what is no dense tensor,
    for a name given twice, and for no tensors at all; then nothing is left behind.
    """
    target = output.target_of(path)
    output.check_options(target, dtype, metadata)
    most = output.shard_bytes(target, max_shard_size)
    with output.folder_for(target), TemporaryDirectory(prefix=f".{target.stem}-", dir=target.parent) as name:
        scratch = Path(name)
        stream = _stream(tensors, dtype, target, scratch / "spool")
        check_specs(stream.specs, target)
        metadata = {**getattr(stream, "metadata", {}), **(metadata or {})}
        layout = output.plan(target, scratch, stream.specs, dtype=dtype, max_shard_size=most, metadata=metadata)
        with one_thread():
            digests = [_write_shard(layout, shard, stream) for shard in layout.shards]
        return output.publish_files(layout, digests)


def _stream(
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]] | TensorStream,
    dtype: torch.dtype | None,
    target: Path,
    spool: Path,
) -> TensorStream:
    """Anything that can be written, as a stream."""
    if isinstance(tensors, TensorStream):
        return tensors
    if isinstance(tensors, dict):
        return HeldTensors(tensors, target)
    if isinstance(tensors, Mapping):  # a Reader, say: its tensors exist while they are looked at
        return SpooledTensors(((name, tensors[name]) for name in sorted(tensors, key=str)), dtype, target, spool)
    return SpooledTensors(tensors, dtype, target, spool)


def _write_shard(layout: Layout, shard: Shard, stream: TensorStream) -> str:
    """Fill one file from its beginning to its end; returns its sha256, computed on the way."""
    digest = hashlib.sha256(shard.header)
    end = len(shard.header)

    def watch(_: Shard, place: int, data: memoryview) -> None:
        nonlocal end
        if place != end:
            raise ValueError(f"{layout.target}: a stream gave its pieces out of order")
        digest.update(data)
        end += data.nbytes

    pieces = checked(stream.pieces(list(shard.places)), layout.dtype, layout.target)
    output.fill(layout, pieces, sync=False, watch=watch)
    if end != shard.draft.stat().st_size:
        raise ValueError(f"{layout.target}: a stream gave less than it promised")
    return digest.hexdigest()
