"""Adapters in the layout of PEFT: LoRA and (IA)3, merged as they are, without the model that they adapt.

A merge takes every tensor of the adapters by itself, as PEFT's own `linear`, `ties` and `dare` combinations do: the
product B·A of averaged LoRA factors is not the average of the products, but equal adapters merge to themselves, and
the result is an adapter of the same rank. Adapters that scale their product differently (rank, alpha) are refused.
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergeline.checkpoints.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from mergeline.checkpoints.huggingface import read_config
from mergeline.checkpoints.tensors import Reader, ReaderView
from mergeline.errors import InputError

PREFIX = "base_model.model."
# How many times a module's adapter counts, and where: adapters that differ here mean other things by equal numbers.
SCALES = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out")
NATURAL_START = {"*.lora_A.*": 0.0, "*.lora_B.*": 0.0, "*.lora_embedding_[AB]*": 0.0, "*.ia3_l*": 1.0}
UNSET: dict[str, Any] = {"rank_pattern": {}, "alpha_pattern": {}}  # older PEFT did not write every field; else False
HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # B·A begins at 0 (False: for tests of PEFT)
PART = re.compile(r"\.(lora_|ia3_).*$")


class AdapterReader(ReaderView):
    """The tensors of an adapter directory; `config` has the fields of its adapter_config.json."""

    def __init__(self, inner: Reader, config: Path) -> None:
        super().__init__(inner)
        self.config = read_config(config)
        if not isinstance(self.config.get("peft_type"), str):
            raise InputError(f"{config}: has no 'peft_type'; save the adapter again with PEFT's save_pretrained")

    @property
    def kind(self) -> str:
        """What PEFT calls this kind of adapter: LORA, IA3, ..."""
        return str(self.config["peft_type"])

    @property
    def modules(self) -> list[str]:
        """Names of the modules that it adapts, sorted."""
        return sorted({PART.sub("", name).removeprefix(PREFIX) for name in self.names() if PART.search(name)})


def open_adapter(weights: Path, reader: Reader) -> Reader:
    """The reader of adapter weights, with the config beside them; any other reader as it is."""
    config = weights.with_name(ADAPTER_CONFIG)
    return AdapterReader(reader, config) if weights.name in ADAPTER_WEIGHTS and config.is_file() else reader


def refuse_unlike_adapters(readers: Sequence[Reader]) -> None:
    """InputError where some checkpoints are adapters and others not, or where adapters do not fit each other.

    Adapters fit if they are of one kind, adapt the same modules, and scale alike. Checkpoints that are no adapters
    are not looked at.
    """
    adapters = [reader for reader in readers if isinstance(reader, AdapterReader)]
    if not adapters:
        return
    first = adapters[0]
    for reader in readers:
        if not isinstance(reader, AdapterReader):
            raise InputError(
                f"{reader.source}: is a whole model, but {first.source} is an adapter ({first.kind}); merge adapters "
                "with adapters, or save the adapted model first (PEFT's merge_and_unload)"
            )
        _refuse_other_scale(first, reader)
        _refuse_other_modules(first, reader)


def _refuse_other_scale(first: AdapterReader, other: AdapterReader) -> None:
    if other.kind != first.kind:
        raise InputError(
            f"{other.source}: {ADAPTER_CONFIG}: peft_type is {other.kind}, but {first.kind} in {first.source}; "
            "only adapters of one kind can be merged"
        )
    for field in SCALES if first.kind == "LORA" else ("fan_in_fan_out",):
        ours, theirs = (adapter.config.get(field) or UNSET.get(field, False) for adapter in (first, other))
        if ours != theirs:
            raise InputError(
                f"{other.source}: {ADAPTER_CONFIG}: {field} is {theirs}, but {ours} in {first.source}; {_advice(field)}"
            )


def _advice(field: str) -> str:
    if field in ("r", "rank_pattern"):
        return "adapters of different ranks cannot be merged tensor by tensor: train them with one rank"
    return "their tensors would count differently: train them with one setting"


def _refuse_other_modules(first: AdapterReader, other: AdapterReader) -> None:
    ours, theirs = set(first.modules), set(other.modules)
    missing, extra = sorted(ours - theirs), sorted(theirs - ours)
    if missing or extra:
        said = [f"lacks {_listed(missing)}"] * bool(missing) + [f"adapts {_listed(extra)} besides"] * bool(extra)
        raise InputError(
            f"{other.source}: {' and '.join(said)}, compared with {first.source}; "
            f"adapters must adapt the same modules (target_modules in {ADAPTER_CONFIG})"
        )


def _listed(modules: list[str]) -> str:
    return ", ".join(modules[:4]) + (f" and {len(modules) - 4} more" if len(modules) > 4 else "")


class InitialAdapterReader(ReaderView):
    """What an adapter is before training changes its model: the base of task vectors of adapters.

    LoRA: zeros, for factors of zero change nothing (A starts at random, but B at zero). (IA)3: vectors of ones.
    Raises InputError for tensors whose start is not known without the model: DoRA magnitudes, trained modules, factors
    that were drawn from the model's own weights (PiSSA, OLoRA, ...).
    """

    def __init__(self, adapter: Reader) -> None:
        super().__init__(adapter)
        drawn = adapter.config.get("init_lora_weights") if isinstance(adapter, AdapterReader) else None
        if drawn not in HARMLESS_STARTS:
            raise InputError(
                f"{adapter.source}: {ADAPTER_CONFIG}: init_lora_weights is {drawn!r}, a start that only its base model "
                "knows; merge with method: average, or give the adapter before training as base"
            )
        self._start = {name: self._start_of(name) for name in adapter.names()}

    def read(self, name: str) -> Tensor:
        """Zeros or ones."""
        return torch.full(self.shape(name), self._value(name), dtype=self.dtype(name))

    def read_slice(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of zeros or ones."""
        count, *rest = self.shape(name)
        rows = len(range(count)[start:stop])
        return torch.full((rows, *rest), self._value(name), dtype=self.dtype(name))

    def _value(self, name: str) -> float:
        if name not in self._start:
            raise self.unknown(name)
        return self._start[name]

    def _start_of(self, name: str) -> float:
        for pattern, value in NATURAL_START.items():
            if fnmatchcase(name, pattern):
                return value
        raise InputError(
            f"{self._inner.source}: tensor '{name}' starts at a value that only its base model knows; "
            "merge with method: average, or give the adapter before training as base"
        )
