"""Hugging Face directories: the ties that a config tells of, and the files that go along with merged weights."""

import json
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from mergeline.checkpoints.atomic import publish
from mergeline.checkpoints.files import companions
from mergeline.checkpoints.tensors import Reader, ReaderView
from mergeline.checkpoints.ties import equal_bits, ties_by
from mergeline.checkpoints.vocabulary import is_vocabulary
from mergeline.errors import InputError

PIECE = 1 << 22  # entries compared at a time
DTYPE_KEYS = ("torch_dtype", "dtype")  # of transformers 4 and 5; 5 reads both


class HuggingFaceReader(ReaderView):
    """The weights of a Hugging Face directory.

    Where its config does not say `tie_word_embeddings: false`, vocabulary matrices that are stored twice with equal
    bits are tied: some programs write both. They are compared when ties are asked for, not before.
    """

    def __init__(self, inner: Reader, config: dict[str, Any]) -> None:
        super().__init__(inner)
        self._config = config

    def tied(self) -> dict[str, str]:
        """Ties of the file, and equal vocabulary matrices."""
        return dict(self._tied)

    @cached_property
    def _tied(self) -> dict[str, str]:
        tied = super().tied()
        roots = {name: tied.get(name, name) for name in self.names()}
        if self._config.get("tie_word_embeddings") is False:
            return tied
        matrices = [name for name in dict.fromkeys(roots.values()) if is_vocabulary(name) and len(self.shape(name)) > 1]
        for i, name in enumerate(matrices):
            twin = next((other for other in matrices[:i] if self._equal(name, other)), None)
            if twin is not None:
                roots = {known: roots[twin] if root == name else root for known, root in roots.items()}
        return ties_by(roots)

    def _equal(self, name: str, other: str) -> bool:
        if self.shape(name) != self.shape(other) or self.dtype(name) != self.dtype(other):
            return False
        return equal_bits(self._pieces(name), self._pieces(other))

    def _pieces(self, name: str) -> Iterator[Tensor]:
        count, *rest = self.shape(name)
        rows = max(1, PIECE // max(1, torch.Size(rest).numel()))
        return (self.read_slice(name, start, min(start + rows, count)) for start in range(0, count, rows))


def open_huggingface(weights: Path, reader: Reader) -> Reader:
    """The reader of weights beside a config.json of a Hugging Face model; any other reader as it is."""
    try:
        config = read_config(weights.with_name("config.json"))
    except InputError:  # none there, or of another program; who needs it (carry_companions) says so
        return reader
    return HuggingFaceReader(reader, config) if "model_type" in config or "architectures" in config else reader


def carry_companions(
    source: str | Path,
    target: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    vocabulary: int | None = None,
    untied: bool = False,
) -> list[str]:
    """Copy configuration, tokenizer and preprocessing of a model beside merged weights, for `from_pretrained`.

    source: the folder of the reference model, or a file in it. target: the folder of the merged weights. dtype: what
    the weights were written in, to stand in config.json (None: as it is there). vocabulary: rows that were merged;
    larger `vocab_size` entries become it. untied: whether vocabulary matrices that the model ties are apart in the
    merged weights, which `tie_word_embeddings` then says. Returns the names of the files written, sorted; a source that
    is no Hugging Face directory has none. Raises InputError where the config is not JSON, or source and target are one
    folder.
    """
    source, target = Path(source), Path(target)
    folder = source if source.is_dir() else source.parent
    names = companions(path.name for path in folder.iterdir() if path.is_file())
    if target.exists() and target.samefile(folder):
        raise InputError(f"{target}: is the folder of the reference model itself; write the result into another one")
    target.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".companions-", dir=target) as scratch:
        for name in names:
            draft = Path(scratch) / name
            if name == "config.json":
                draft.write_text(_config_text(folder / name, dtype, vocabulary, untied))
            else:
                shutil.copyfile(folder / name, draft)
            publish(draft, target / name)
    return names


def companion_sizes(
    folder: Path, *, dtype: str | None = None, vocabulary: int | None = None, untied: bool = False
) -> dict[str, int]:
    """Name -> bytes of the files that `carry_companions` would write; nothing is written. InputError as there."""
    names = companions(path.name for path in folder.iterdir() if path.is_file())
    sizes = {name: (folder / name).stat().st_size for name in names}
    if "config.json" in sizes:
        sizes["config.json"] = len(_config_text(folder / "config.json", dtype, vocabulary, untied).encode())
    return sizes


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError where there is none."""
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error}); download or save it again") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds a {type(config).__name__}, not the fields of a config; download it again")
    return config


def _config_text(path: Path, dtype: torch.dtype | str | None, vocabulary: int | None, untied: bool) -> str:
    config = _adapted(read_config(path), dtype, vocabulary, untied)
    if untied:
        config["tie_word_embeddings"] = False
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def _adapted(
    config: dict[str, Any], dtype: torch.dtype | str | None, vocabulary: int | None, untied: bool
) -> dict[str, Any]:
    """A config with the dtype, vocabulary and ties of the merged weights, also in the configs of its parts."""
    config = {
        key: _adapted(value, dtype, vocabulary, untied)
        if isinstance(value, dict) and key.endswith("_config")
        else value
        for key, value in config.items()
    }
    if dtype is not None:
        present = [key for key in DTYPE_KEYS if config.get(key) is not None]
        whole = "model_type" in config or "architectures" in config  # others take it from the config around them
        for key in present or (["torch_dtype"] if whole else []):
            config[key] = str(dtype).removeprefix("torch.")
    size = config.get("vocab_size")
    if vocabulary is not None and isinstance(size, int) and size > vocabulary:
        config["vocab_size"] = vocabulary
    if untied and "tie_word_embeddings" in config:
        config["tie_word_embeddings"] = False
    return config
