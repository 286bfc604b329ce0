"""Checkpoint files: safetensors (one file, or shards with an index) and what torch.save writes."""

import pickle
import re
import zipfile
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mergeline.checkpoints.encoding import DTYPES
from mergeline.checkpoints.files import INDEX, weight_map
from mergeline.checkpoints.tensors import Reader, TensorReader
from mergeline.checkpoints.ties import ties_by
from mergeline.errors import InputError

__all__ = ["INDEX", "SafetensorsReader", "ShardedReader", "open_torch"]


class SafetensorsReader(Reader):
    """One .safetensors file, mapped into memory: only what is asked for is read.

    Aliases that its metadata records, as safetensors.torch.save_model writes them for tied weights, are tensors too.
    Raises InputError for a file that is not whole.
    """

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            reason = disguise(path) or f"is not a whole safetensors file ({error}); download or save it again"
            raise InputError(f"{path}: {reason}") from None
        self._slices = {name: self._file.get_slice(name) for name in sorted(self._file.keys())}
        for name in self._slices:
            if (dtype := self._slices[name].get_dtype()) not in DTYPES:
                raise InputError(f"{path}: tensor '{name}' has dtype {dtype}, which cannot be merged; save it as float")
        self.metadata: dict[str, str] = dict(self._file.metadata() or {})
        self._aliases = _aliases(self.metadata, self._slices)

    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted([*self._slices, *self._aliases])

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor, from the header."""
        return DTYPES[self._slice(name).get_dtype()]

    def read(self, name: str) -> Tensor:
        """The tensor, mapped from the file."""
        self._slice(name)
        return self._file.get_tensor(self._aliases.get(name, name))

    def read_slice(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop), only their bytes read."""
        return self._slice(name)[start:stop]

    def tied(self) -> dict[str, str]:
        """Aliases and what they stand for."""
        return ties_by({name: self._aliases.get(name, name) for name in self.names()})

    def aliases(self) -> dict[str, str]:
        """Alias -> stored name, as the metadata records it."""
        return dict(self._aliases)

    def read_flat(self, name: str, start: int, stop: int) -> Tensor:
        """Entries [start, stop), flat and mapped from the file: no copy."""
        return self.read(name).view(-1)[start:stop]

    def __contains__(self, name: object) -> bool:
        return name in self._slices or name in self._aliases

    def _slice(self, name: str) -> Any:  # the library does not export the class of its slices
        if name not in self:
            raise self.unknown(name)
        return self._slices[self._aliases.get(name, name)]


def _aliases(metadata: Mapping[str, str], stored: Container[str]) -> dict[str, str]:
    """Names that the metadata gives to stored tensors; entries that say other things are passed by."""
    names = {name: kept for name, kept in sorted(metadata.items()) if kept in stored and name not in stored}
    return {name: kept for name, kept in names.items() if name != "format"}  # 'format': 'pt', even of a tensor 'pt'


class ShardedReader(Reader):
    """Several files, found through `<model>.safetensors.index.json` or `<model>.bin.index.json`.

    Raises InputError for a missing shard, and for a tensor that the index promises and the shard does not hold.
    """

    def __init__(self, index: Path) -> None:
        self.source = str(index)
        places = weight_map(index)
        shards = {file: _open_shard(index, file) for file in sorted(set(places.values()))}
        recorded: dict[str, str] = {}
        for shard in shards.values():
            recorded |= shard.metadata if isinstance(shard, SafetensorsReader) else {}
        self._aliases = _aliases(recorded, places)  # the kept tensor may lie in any shard
        names = sorted([*places, *self._aliases])
        self._home: dict[str, Reader] = {name: shards[places[self._aliases.get(name, name)]] for name in names}
        for name in places:
            if name not in self._home[name]:
                raise InputError(
                    f"{index}: promises tensor '{name}' in {places[name]}, which does not hold it; "
                    "index and shards are of different checkpoints: download or save them again"
                )

    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return list(self._home)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header of its shard."""
        return self._shard(name).shape(self._stored(name))

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor, from the header of its shard."""
        return self._shard(name).dtype(self._stored(name))

    def read(self, name: str) -> Tensor:
        """The tensor, mapped from its shard."""
        return self._shard(name).read(self._stored(name))

    def read_slice(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop), only their bytes read."""
        return self._shard(name).read_slice(self._stored(name), start, stop)

    def tied(self) -> dict[str, str]:
        """Aliases that the shards record, and names of one shard that share memory there."""
        within = {shard: shard.tied() for shard in set(self._home.values())}
        stored = {name: self._stored(name) for name in self._home}
        return ties_by({name: (self._home[name], within[self._home[name]].get(at, at)) for name, at in stored.items()})

    def aliases(self) -> dict[str, str]:
        """Alias -> stored name, for the names that the index lists or a shard records."""
        known = dict(self._aliases)
        for shard in set(self._home.values()):
            known |= {name: kept for name, kept in shard.aliases().items() if self._home.get(name) is shard}
        return {name: kept for name, kept in sorted(known.items()) if kept in self._home}

    def read_flat(self, name: str, start: int, stop: int) -> Tensor:
        """Entries [start, stop), flat and mapped from the shard."""
        return self._shard(name).read_flat(self._stored(name), start, stop)

    def __contains__(self, name: object) -> bool:
        return name in self._home

    def _stored(self, name: str) -> str:
        return self._aliases.get(name, name)

    def _shard(self, name: str) -> Reader:
        if name not in self._home:
            raise self.unknown(name)
        return self._home[name]


def _open_shard(index: Path, file: str) -> Reader:
    if not (index.parent / file).is_file():
        raise InputError(f"{index}: the shard {file} is missing; download it into {index.parent}")
    return SafetensorsReader(index.parent / file) if file.endswith(".safetensors") else open_torch(index.parent / file)


def open_torch(path: Path) -> TensorReader:
    """What torch.save wrote: tensors only, mapped into memory where the file allows it.

    Raises InputError for pickled objects, which could run code when loaded, and for a damaged file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # damaged bytes make the unpickler raise anything
        raise InputError(f"{path}: {disguise(path) or _refusal(error)}") from None
    if not isinstance(state, Mapping):
        raise InputError(f"{path}: holds a {type(state).__name__}, not a state dict; save module.state_dict()")
    return TensorReader(state, str(path))


def _refusal(error: Exception) -> str:
    if not isinstance(error, pickle.UnpicklingError):
        return f"is not a whole PyTorch checkpoint ({type(error).__name__}); download or save it again"
    asked = re.search(r"GLOBAL ([\w.]+)", str(error))
    return (
        f"holds pickled Python objects{f' ({asked[1]})' if asked else ''}, and loading those can run any code; "
        "refused. Where you trust the file, convert it: "
        "safetensors.torch.save_file(torch.load(file, weights_only=False).state_dict(), 'model.safetensors')"
    )


def kind_of(path: Path, name: str) -> str:
    """The ending that a file of unknown name should have, by its content: a known suffix, or that of an index.

    name: what messages call it. Raises InputError for what is no checkpoint.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:9] == b"{" and 8 + int.from_bytes(head[:8], "little") <= size:
        return ".safetensors"
    if zipfile.is_zipfile(path) or re.match(rb"\x80[\x02-\x05]", head):
        return ".pt"
    if head.lstrip().startswith(b"{"):
        try:
            shards = weight_map(path).values()
            return INDEX if all(shard.endswith(".safetensors") for shard in shards) else ".bin.index.json"
        except InputError:
            pass
    raise InputError(f"{name}: {disguise(path) or 'is neither safetensors nor written by torch.save; check it'}")


def disguise(path: Path) -> str | None:
    """What a file that cannot be read really is, where its first bytes tell."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        return f"cannot be opened ({error.strerror})"
    if not head:
        return "is empty; download or save it again"
    text = b"" if b"\0" in head else head.lstrip()  # the length that a safetensors file begins with has zero bytes
    if text.startswith(b"<"):
        return "is a web page, not a checkpoint; use the address of the file itself, not of a page about it"
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not a checkpoint; run 'git lfs pull' or download the file itself"
    if text.startswith(b"{"):
        return "is JSON text, not a checkpoint; read it: a server may have answered with an error"
    if path.suffix == ".safetensors" and zipfile.is_zipfile(path):
        return "was written by torch.save; rename it to .pt"
    return None
