"""The engine: streams task models tensor by tensor through a merging method and yields the merged tensors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mergeline.checkpoints.readers import Reader, TensorReader, open_checkpoint
from mergeline.errors import InputError
from mergeline.merging import registry
from mergeline.merging.average import average
from mergeline.merging.chunks import TaskModels, is_finite
from mergeline.merging.layout import check_same_tensors

DEFAULT_PATTERNS = ("*running_mean", "*running_var")  # statistics of the data, not parameters: averaged
FIRST_PATTERNS = ("*num_batches_tracked",)  # counters: like every integer tensor, the first model's value
CHUNK = 1 << 17  # entries per model at a time

Checkpoint = Mapping[str, Tensor] | str | Path  # a Reader is a mapping too


def merge(
    readers: Sequence[Checkpoint],
    *,
    base: Checkpoint | Sequence[Checkpoint] | None = None,
    method: str = "pcb",
    onto: Literal["mean", "first"] = "mean",
    out_dtype: torch.dtype | None = None,
    chunk: int = CHUNK,
    average_only: Sequence[str] = DEFAULT_PATTERNS,
    statistics: dict[str, Any] | None = None,
    **options: Any,
) -> Iterator[tuple[str, Tensor]]:
    """Merge n task models; yields (name, tensor) in the order of names, so memory holds one tensor and one chunk.

    readers: Readers, state dicts or paths with the same tensors. base: the checkpoint they started from, or one per
    model; the *same object* (or path) given twice is one base. The result is the mean of the distinct bases (or the
    first, `onto`) plus the merged task vector; methods that need no base merge the tensors and leave it unread.
    Tensors matching `average_only` are averaged (with the option `weights` of a method that has it); integer tensors
    and counters take the first model's value. Arithmetic is float32, rounded once to `out_dtype` (default: the first
    model's dtype, tensor by tensor). chunk: entries per model held at a time; it changes no bit of the result.
    statistics: what `method_statistics` gave for the same models, base and options; None computes it in a first pass.
    options: those of the method (`registry.get(method).options`).
    InputError before anything is yielded: unknown method or option, checkpoints that do not fit each other. InputError
    while iterating: NaN or infinity in a checkpoint or in the result, naming checkpoint and tensor.
    """
    job = _Job.prepare(readers, base, method, chunk, average_only, options)
    if onto not in ("mean", "first"):
        raise InputError(f"onto must be 'mean' or 'first', not {onto!r}.")
    if out_dtype is not None and not out_dtype.is_floating_point:
        raise InputError(f"out_dtype must be a floating dtype, not {out_dtype}.")
    if statistics is not None and job.method.statistics is None:
        raise InputError(f"method {method!r} uses no statistics; leave `statistics` out.")
    return _merged(job, onto, out_dtype, statistics)


def method_statistics(
    readers: Sequence[Checkpoint],
    *,
    base: Checkpoint | Sequence[Checkpoint] | None = None,
    method: str = "pcb",
    chunk: int = CHUNK,
    average_only: Sequence[str] = DEFAULT_PATTERNS,
    **options: Any,
) -> dict[str, Any] | None:
    """What a method must know of the whole models before it merges them: a JSON-able dictionary, or None.

    Arguments as of `merge`. The merged tensors are taken as one vector per model, in the order of their names. Of the
    options only `registry.get(method).statistics_options` matter.
    """
    return _Job.prepare(readers, base, method, chunk, average_only, options).statistics()


@dataclass(frozen=True, eq=False)
class _Job:
    """A validated merge: the models, and the method with all its options."""

    inputs: TaskModels
    method: registry.Method
    options: dict[str, Any]
    chunk: int
    average_only: Sequence[str]

    @classmethod
    def prepare(
        cls,
        readers: Sequence[Checkpoint],
        base: Checkpoint | Sequence[Checkpoint] | None,
        method: str,
        chunk: int,
        average_only: Sequence[str],
        options: Mapping[str, Any],
    ) -> "_Job":
        entry = registry.get(method)
        values = entry.validate_options(options)
        if chunk < 1:
            raise InputError(f"chunk must be at least 1, not {chunk}.")
        if isinstance(readers, str | Path | Mapping) or not readers:
            raise InputError("readers must be a non-empty sequence of checkpoints, one per task model.")
        models = [_open(checkpoint, f"readers[{index}]") for index, checkpoint in enumerate(readers)]
        families, family_of = _families(base, len(models), method) if entry.needs_base else ([], [])
        check_same_tensors(models[0], [*models[1:], *families])
        return cls(TaskModels(models, families, family_of), entry, values, chunk, average_only)

    def is_copied(self, name: str) -> bool:
        """Whether a tensor takes the first model's value."""
        return not self.inputs.models[0].dtype(name).is_floating_point or _matches(name, FIRST_PATTERNS)

    def is_averaged(self, name: str) -> bool:
        return not self.is_copied(name) and _matches(name, self.average_only)

    def statistics(self) -> dict[str, Any] | None:
        """The statistics of all merged tensors as one vector; None where the method has none or nothing is merged."""
        first = self.inputs.models[0]
        names = [name for name in first.names() if not self.is_copied(name) and not self.is_averaged(name)]
        size = sum(prod(first.shape(name)) for name in names)
        if self.method.statistics is None or not size:
            return None
        options = {name: self.options[name] for name in self.method.statistics_options}
        return self.method.statistics(lambda: self.inputs.rows(names, self.chunk), size, **options)


def _merged(
    job: _Job, onto: str, out_dtype: torch.dtype | None, statistics: dict[str, Any] | None
) -> Iterator[tuple[str, Tensor]]:
    if job.method.statistics and statistics is None:
        statistics = job.statistics()
    given = {"statistics": statistics} if job.method.statistics else {}
    kernel = partial(job.method.kernel, **given, **job.options)
    mean = partial(average, weights=job.options.get("weights"))
    first = job.inputs.models[0]
    for name in first.names():
        dtype = out_dtype or first.dtype(name)
        if job.is_copied(name):
            yield name, first.read(name).clone()
        elif job.is_averaged(name):
            yield name, _tensor(name, job.inputs.without_bases(), mean, onto, dtype, job.chunk)
        else:
            yield name, _tensor(name, job.inputs, kernel, onto, dtype, job.chunk)


def _tensor(
    name: str, inputs: TaskModels, kernel: Callable[[Tensor], Tensor], onto: str, dtype: torch.dtype, chunk: int
) -> Tensor:
    """One merged tensor in its final dtype: origin + kernel(rows), chunk by chunk."""
    merged = torch.empty(inputs.models[0].shape(name), dtype=dtype)
    flat = merged.view(-1)
    for piece in inputs.chunks(name, chunk):
        values = kernel(piece.rows)
        if piece.bases is not None:
            values = values + (average(piece.bases) if onto == "mean" else piece.bases[0])
        target = flat[piece.start : piece.start + len(values)]
        target.copy_(values)
        if not is_finite(target):
            raise InputError(f"merged tensor {name!r} overflows {dtype}; choose a wider out_dtype or a smaller scale.")
    return merged


def _families(base: Any, models: int, method: str) -> tuple[list[Reader], list[int]]:
    """The distinct bases in the order of first use, and the index of each model's base."""
    if base is None:
        raise InputError(f"method {method!r} needs `base`: the checkpoint that the task models started from.")
    one_for_all = isinstance(base, str | Path | Mapping)
    bases = [base] * models if one_for_all else list(base)
    if len(bases) != models:
        raise InputError(f"there are {len(bases)} bases for {models} task models; give one base, or one per model.")
    identities = [str(item) if isinstance(item, str | Path) else id(item) for item in bases]
    firsts = [index for index, identity in enumerate(identities) if identities.index(identity) == index]
    readers = [_open(bases[index], "base" if one_for_all else f"base[{index}]") for index in firsts]
    return readers, [firsts.index(identities.index(identity)) for identity in identities]


def _open(checkpoint: Checkpoint, role: str) -> Reader:
    """A reader; a plain state dict has no name of its own, so errors call it by its role."""
    if isinstance(checkpoint, Mapping) and not isinstance(checkpoint, Reader):
        return TensorReader(checkpoint, source=role)
    return open_checkpoint(checkpoint)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
