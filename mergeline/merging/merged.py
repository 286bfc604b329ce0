"""The result of a merge: tensors, or pieces of them, computed as they are asked for."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mergeline.checkpoints.encoding import Spec
from mergeline.checkpoints.finite import is_finite
from mergeline.errors import InputError
from mergeline.merging.average import average
from mergeline.merging.job import Job
from mergeline.merging.registry import Piece, row_length
from mergeline.threads import on_one_thread


class MergedTensors(Iterator[tuple[str, Tensor]]):
    """Merged tensors as pairs (name, tensor) in the order of names; `pieces` gives them in bounded memory.

    specs: name -> shape and dtype of what a file holds; a name for which the first model's file holds no tensor of its
    own, only a note that it is another one's, becomes such a note again (metadata), if all models tie the two.
    Nothing is computed before it is asked for; then the statistics, where the method has some and none were given.
    """

    def __init__(
        self, job: Job, onto: str, out_dtype: torch.dtype | None, statistics: Mapping[str, Mapping[str, Any]] | None
    ) -> None:
        self._job, self._onto, self._statistics = job, onto, statistics
        self._specs = {name: _spec(job, name, out_dtype) for name in job.treatments}
        self.metadata = _aliases_in_files(job)  # alias -> stored name, for the header of the file
        self.specs = {name: spec for name, spec in self._specs.items() if name not in self.metadata}  # what is stored
        self.untied = bool(job.first.tied().keys() - job.aliases.keys())  # what the first model ties, others do not
        self._pairs = self._tensors()

    def __next__(self) -> tuple[str, Tensor]:
        return next(self._pairs)

    def pieces(self, names: Sequence[str] | None = None) -> Iterator[tuple[str, int, Tensor]]:
        """(name, index of the first entry, flat piece in its final dtype), in the order of `names` (default: all).

        The pieces of a tensor follow each other without a gap. Each lies in memory that the next one uses again.
        """
        listed = list(self.specs if names is None else names)
        shown = None if self._job.method.whole_tensors else True  # the others take no time between two reads
        for name in tqdm(listed, desc=self._job.method.name, unit="tensor", disable=shown):
            yield from self.pieces_of(name)

    def pieces_of(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[tuple[str, int, Tensor]]:
        """The pieces of entries [start, stop) of one tensor; a method of whole tensors computes the whole one."""
        shape, dtype = self._specs[name]
        stop = prod(shape) if stop is None else stop
        source = self._job.aliases.get(name, name)
        if self._job.treatments[source].kind == "copied":
            yield from self._copied(name, start, stop)
            return
        yield from on_one_thread(self._rounded(name, source, dtype, start, stop))

    def _rounded(
        self, name: str, source: str, dtype: torch.dtype, start: int, stop: int
    ) -> Iterator[tuple[str, int, Tensor]]:
        """What is computed of one tensor, in its final dtype."""
        rounded = torch.empty(0, dtype=dtype)
        for first, values in self._values(source, start, stop):
            if rounded.numel() < len(values):
                rounded = torch.empty(len(values), dtype=dtype)
            piece = rounded[: len(values)].copy_(values)
            if not is_finite(piece):
                raise InputError(
                    f"merged tensor {name!r} overflows {dtype}; choose a wider out_dtype or a smaller scale."
                )
            yield name, first, piece

    def is_whole(self, name: str) -> bool:
        """Whether a part of the tensor costs as much as all of it."""
        merged = self._job.treatments[self._job.aliases.get(name, name)].kind == "merged"
        return merged and self._job.method.whole_tensors

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        job = self._job
        shared: dict[str, Tensor] = {}  # tensors whose aliases are still to come
        last_use = {first: name for name, first in sorted(job.aliases.items())}
        for name, (shape, dtype) in self._specs.items():
            first = job.aliases.get(name, name)
            if first in shared:
                yield name, shared[first]
            elif job.treatments[name].kind == "copied":
                yield name, job.first.read(name).clone()
            else:
                merged = torch.empty(shape, dtype=dtype)
                for _, start, piece in self.pieces_of(name):
                    merged.view(-1)[start : start + len(piece)] = piece
                if name in last_use:
                    shared[name] = merged
                yield name, merged
            if last_use.get(first) == name:
                shared.pop(first, None)

    def _copied(self, name: str, start: int, stop: int) -> Iterator[tuple[str, int, Tensor]]:
        for first in range(start, stop, self._job.chunk):
            part = self._job.first.read_flat(name, first, min(first + self._job.chunk, stop))
            yield name, first, part

    def _values(self, name: str, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        """(start, merged entries [c] float32) of one tensor, chunk by chunk: origin + kernel(rows)."""
        job, treatment = self._job, self._job.treatments[name]
        if treatment.kind == "averaged":
            weights = None if job.method.needs_base else treatment.options.get("weights")
            mean = partial(average, weights=weights)
            for chunk in job.inputs.without_bases().chunks(name, job.chunk, start, stop):
                yield chunk.start, mean(chunk.rows)
            return
        kernel = partial(job.method.kernel, **treatment.options, **self._given(treatment.group))
        shape = job.first.shape(name)
        if job.method.whole_tensors:
            yield from self._whole(name, shape, kernel, start, stop)
            return
        row = max(1, row_length(shape)) if job.method.whole_rows else 1
        first, last = start // row * row, -(-stop // row) * row
        for chunk in job.inputs.chunks(name, max(job.chunk, row), first, last):
            given: dict[str, Any] = {"where": Piece(name, chunk.start, shape), "evidence": chunk.evidence}
            values = self._on_base(kernel(chunk.rows, **self._taken(given)), chunk.bases)
            skipped = max(start - chunk.start, 0)
            yield chunk.start + skipped, values[skipped : stop - chunk.start]

    def _whole(
        self, name: str, shape: tuple[int, ...], kernel: Any, start: int, stop: int
    ) -> Iterator[tuple[int, Tensor]]:
        """The same for a kernel that sees whole tensors; entries [start, stop) of what it gives."""
        job = self._job
        for chunk in job.inputs.chunks(name, max(1, prod(shape))):
            evidence = chunk.evidence.view(-1, *shape) if chunk.evidence is not None else self._gram(name)
            given: dict[str, Any] = {"where": Piece(name, 0, shape), "evidence": evidence}
            values = kernel(chunk.rows.view(-1, *shape), **self._taken(given)).reshape(-1)
            yield start, self._on_base(values, chunk.bases)[start:stop]

    def _on_base(self, values: Tensor, bases: Tensor | None) -> Tensor:
        if bases is None:
            return values
        return values + (average(bases) if self._onto == "mean" and len(bases) > 1 else bases[0])

    def _gram(self, name: str) -> Tensor | None:
        """[n, in, in] float32, or None for a tensor without evidence."""
        grams = self._job.grams
        if not grams or name not in grams[0]:
            return None
        matrices = torch.stack([reader.read(name).detach().float() for reader in grams])
        for reader, matrix in zip(grams, matrices, strict=True):
            if not is_finite(matrix):
                raise InputError(f"{reader.source}: tensor {name!r} holds NaN or infinity.")
        return matrices

    def _taken(self, given: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in given.items() if key in self._job.method.takes}

    def _given(self, group: str | None) -> dict[str, Any]:
        """The keyword `statistics` of the kernel, for methods that have it."""
        if group is None:
            return {}
        if self._statistics is None:
            self._statistics = self._job.statistics() or {}
        return {"statistics": self._statistics.get(group, {})}


def _spec(job: Job, name: str, out_dtype: torch.dtype | None) -> Spec:
    own = job.first.dtype(name)
    return job.first.shape(name), own if job.treatments[name].kind == "copied" else out_dtype or own


def _aliases_in_files(job: Job) -> dict[str, str]:
    """Names that need no tensor of their own in a file -> the name that has it."""
    same = {name: job.aliases.get(name, name) for name in job.treatments}
    return {name: kept for name, kept in job.first.aliases().items() if same.get(name) == same.get(kept)}
