"""Checkpoint files: safetensors (one file, or shards with an index) and what torch.save writes."""

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mergeline.checkpoints.encoding import DTYPES
from mergeline.checkpoints.tensors import Reader, TensorReader
from mergeline.errors import InputError

INDEX = ".safetensors.index.json"


class SafetensorsReader(Reader):
    """One .safetensors file, mapped into memory: only what is asked for is read.

    Raises InputError for a file that is not whole.
    """

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            reason = _disguise(path) or f"is not a whole safetensors file ({error}); download or save it again"
            raise InputError(f"{path}: {reason}") from None
        self._slices = {name: self._file.get_slice(name) for name in sorted(self._file.keys())}
        for name in self._slices:
            if (dtype := self._slices[name].get_dtype()) not in DTYPES:
                raise InputError(f"{path}: tensor '{name}' has dtype {dtype}, which cannot be merged; save it as float")

    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return list(self._slices)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor, from the header."""
        return DTYPES[self._slice(name).get_dtype()]

    def read(self, name: str) -> Tensor:
        """The tensor, mapped from the file."""
        self._slice(name)
        return self._file.get_tensor(name)

    def read_slice(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop), only their bytes read."""
        return self._slice(name)[start:stop]

    def __contains__(self, name: object) -> bool:
        return name in self._slices

    def _slice(self, name: str) -> Any:  # the library does not export the class of its slices
        if name not in self._slices:
            raise self.unknown(name)
        return self._slices[name]


class ShardedReader(Reader):
    """Several .safetensors files, found through `<model>.safetensors.index.json`.

    Raises InputError for a missing shard, and for a tensor that the index promises and the shard does not hold.
    """

    def __init__(self, index: Path) -> None:
        self.source = str(index)
        places = _weight_map(index)
        shards = {file: _open_shard(index, file) for file in sorted(set(places.values()))}
        self._home = {name: shards[places[name]] for name in sorted(places)}
        for name, shard in self._home.items():
            if name not in shard:
                raise InputError(
                    f"{index}: promises tensor '{name}' in {Path(shard.source).name}, which does not hold it; "
                    "index and shards are of different checkpoints: download or save them again"
                )

    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return list(self._home)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header of its shard."""
        return self._shard(name).shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor, from the header of its shard."""
        return self._shard(name).dtype(name)

    def read(self, name: str) -> Tensor:
        """The tensor, mapped from its shard."""
        return self._shard(name).read(name)

    def read_slice(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop), only their bytes read."""
        return self._shard(name).read_slice(name, start, stop)

    def __contains__(self, name: object) -> bool:
        return name in self._home

    def _shard(self, name: str) -> SafetensorsReader:
        if name not in self._home:
            raise self.unknown(name)
        return self._home[name]


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name of its shard."""
    try:
        places = json.loads(index.read_text())["weight_map"]
        if all(isinstance(file, str) for file in places.values()):
            return places
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise InputError(f"{index}: is not the index of a sharded checkpoint (it has no 'weight_map'); download it again")


def _open_shard(index: Path, file: str) -> SafetensorsReader:
    if Path(file).name != file:  # an index from elsewhere must not point out of its folder
        raise InputError(f"{index}: names the shard '{file}'; shards lie in the folder of the index, without a path")
    if not (index.parent / file).is_file():
        raise InputError(f"{index}: the shard {file} is missing; download it into {index.parent}")
    return SafetensorsReader(index.parent / file)


def open_torch(path: Path) -> TensorReader:
    """What torch.save wrote: tensors only, mapped into memory where the file allows it.

    Raises InputError for pickled objects, which could run code when loaded, and for a damaged file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # damaged bytes make the unpickler raise anything
        raise InputError(f"{path}: {_disguise(path) or _refusal(error)}") from None
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


def _disguise(path: Path) -> str | None:
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
