"""Candidates of a search at the price of one weighted sum: W = t s / sum(s) of PCB-Merging, computed once and kept.

For one keep ratio the competition does not depend on lambda: merged = sum_i lambda_i W_i, then the base is added. The
file holds for each tensor W and the base it is added to [*shape], both float32, and as they are the tensors that no
lambda changes. W lies there as it is computed and read: blocks [n, c] of the flat tensor, one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergeline.balancing.pcb import weighted_directions
from mergeline.balancing.statistics import PcbStatistics
from mergeline.checkpoints.encoding import Spec
from mergeline.checkpoints.finite import is_finite
from mergeline.checkpoints.formats import SafetensorsReader
from mergeline.checkpoints.readers import Reader
from mergeline.checkpoints.writer import write_checkpoint
from mergeline.errors import InputError
from mergeline.merging.average import average
from mergeline.merging.chunks import step_of
from mergeline.merging.engine import CHUNK, DEFAULT_PATTERNS
from mergeline.merging.job import Job, prepare
from mergeline.merging.merged import MergedTensors
from mergeline.merging.patterns import OptionsByPattern, options_for
from mergeline.threads import one_thread

ORIGIN, WEIGHTED, FIXED = "origin", "weighted", "fixed"  # the first word of a name in the file
NOTE = "mergeline.weighted"  # key of the file's metadata


def write_weighted(
    path: Path,
    readers: Sequence[Reader],
    *,
    base: Reader | Sequence[Reader],
    statistics: Mapping[str, Mapping[str, Any]],
    onto: str = "mean",
    out_dtype: torch.dtype | None = None,
    copy_only: Sequence[str] = (),
    granularity: str | None = None,
    options_by_pattern: OptionsByPattern | None = None,
    **options: Any,
) -> None:
    """Compute W and write it, a piece in memory at a time; arguments as of `mergeline.merge` with method "pcb".

    The options `scale` and `scales` are not looked at; those that `options_by_pattern` sets count in every candidate.
    """
    job = prepare(
        readers,
        base=base,
        method="pcb",
        chunk=CHUNK,
        average_only=DEFAULT_PATTERNS,
        copy_only=copy_only,
        granularity=granularity,
        options_by_pattern=options_by_pattern,
        options={name: value for name, value in options.items() if name not in ("scale", "scales")},
    )
    write_checkpoint(path, _Weighted(job, job.accepted(statistics), onto, out_dtype, options_by_pattern or {}))


def weighted_bytes(readers: Sequence[Reader]) -> int:
    """About how large the file of `write_weighted` will be."""
    return 4 * (len(readers) + 1) * sum(prod(readers[0].shape(name)) for name in readers[0].names())


def candidate(file: Path, *, scale: float = 1.0, scales: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The merged model for one choice of lambda, as `mergeline.merge` would give it, to rounding.

    Each entry of the task vector is off by at most 2^-24 of sum_i |lambda_i W_i|, the rounding of W to float32.
    InputError for a number of scales that is not that of the models, and where a merged tensor overflows its dtype.
    """
    reader = SafetensorsReader(file)
    note = json.loads(reader.metadata[NOTE])
    merged: dict[str, Tensor] = {}
    with one_thread():
        for name, entry in note["tensors"].items():
            if _key(FIXED, name) in reader:
                merged[name] = reader.read(_key(FIXED, name)).clone()
                continue
            chosen = {"scale": scale, "scales": scales} | entry["options"]
            merged[name] = _merged(reader, name, getattr(torch, entry["dtype"]), **chosen)
    merged |= {alias: merged[first] for alias, first in note["aliases"].items()}
    return dict(sorted(merged.items()))


def _merged(
    reader: SafetensorsReader, name: str, dtype: torch.dtype, *, scale: float, scales: Sequence[float] | None
) -> Tensor:
    origin, weighted = reader.read(_key(ORIGIN, name)), reader.read(_key(WEIGHTED, name))
    models = weighted.numel() // max(1, origin.numel())
    factors = [1.0] * models if scales is None else [float(factor) for factor in scales]
    if origin.numel() and len(factors) != models:
        raise InputError(f"PCB: there are {len(factors)} scales for {models} task models.")
    merged = torch.empty(origin.shape, dtype=dtype)
    step = max(1, step_of(tuple(origin.shape), CHUNK))
    blocks = zip(
        merged.view(-1).split(step), origin.reshape(-1).split(step), weighted.split(step * max(1, models)), strict=True
    )
    for target, start, block in blocks:
        total = _weighted_sum(block.view(models, -1), factors) if len(target) else block
        target.copy_(start + scale * total)
        if not is_finite(target):
            raise InputError(f"merged tensor {name!r} overflows {dtype}; choose a wider out_dtype or a smaller scale.")
    return merged


def _weighted_sum(rows: Tensor, factors: Sequence[float]) -> Tensor:
    """sum_i factor_i row_i in float64, row by row, rounded once: [c] float32."""
    total, product = torch.zeros(rows.shape[1], dtype=torch.float64), torch.empty(rows.shape[1], dtype=torch.float64)
    for row, factor in zip(rows, factors, strict=True):
        total += product.copy_(row).mul_(factor)
    return total.float()


def _key(kind: str, name: str) -> str:
    return f"{kind}.{name}"


class _Weighted:
    """The file as a stream of pieces."""

    def __init__(
        self,
        job: Job,
        statistics: Mapping[str, Mapping[str, Any]],
        onto: str,
        out_dtype: torch.dtype | None,
        by_pattern: OptionsByPattern,
    ) -> None:
        self._job, self._onto = job, onto
        self._whole = MergedTensors(job, onto, out_dtype, statistics)
        self._known = {group: PcbStatistics.from_dict(values) for group, values in statistics.items()}
        self._of_kind = {FIXED: self._fixed, ORIGIN: self._origins, WEIGHTED: self._directions}
        self.specs: dict[str, Spec] = {}
        tensors = {}
        for name, treatment in job.treatments.items():
            if name in job.aliases:
                continue
            shape, dtype = job.first.shape(name), out_dtype or job.first.dtype(name)
            own = {k: v for k, v in options_for(name, job.method, by_pattern).items() if k in ("scale", "scales")}
            tensors[name] = {"dtype": str(dtype).removeprefix("torch."), "options": own}
            if treatment.kind == "merged":
                self.specs[_key(ORIGIN, name)] = (shape, torch.float32)
                self.specs[_key(WEIGHTED, name)] = ((len(job.inputs.models) * prod(shape),), torch.float32)
            else:
                self.specs[_key(FIXED, name)] = (shape, job.first.dtype(name) if treatment.kind == "copied" else dtype)
        self.metadata = {NOTE: json.dumps({"tensors": tensors, "aliases": dict(job.aliases)})}

    def pieces(self, names: Sequence[str]) -> Iterator[tuple[str, int, Tensor]]:
        """Flat pieces of the named tensors, in this order; the writer computes on one thread."""
        for full in names:
            kind, _, name = full.partition(".")
            for start, piece in self._of_kind[kind](name):
                yield full, start, piece

    def _fixed(self, name: str) -> Iterator[tuple[int, Tensor]]:
        yield from ((start, piece) for _, start, piece in self._whole.pieces_of(name))

    def _origins(self, name: str) -> Iterator[tuple[int, Tensor]]:
        for chunk in self._job.inputs.chunks(name, self._job.chunk):
            assert chunk.bases is not None
            mean = self._onto == "mean" and len(chunk.bases) > 1
            yield chunk.start, average(chunk.bases) if mean else chunk.bases[0]

    def _directions(self, name: str) -> Iterator[tuple[int, Tensor]]:
        statistics = self._known[self._job.treatments[name].group or ""]
        for chunk in self._job.inputs.chunks(name, self._job.chunk):
            yield chunk.start * len(chunk.rows), weighted_directions(chunk.rows, statistics).view(-1)
