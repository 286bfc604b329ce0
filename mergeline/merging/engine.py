"""The engine: streams task models tensor by tensor through a merging method."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from mergeline.checkpoints.readers import open_checkpoint
from mergeline.errors import InputError
from mergeline.merging import registry
from mergeline.merging.job import Checkpoint, prepare, with_evidence
from mergeline.merging.merged import MergedTensors
from mergeline.merging.patterns import OptionsByPattern, PatternMatch, match_table

DEFAULT_PATTERNS = ("*running_mean", "*running_var")  # statistics of the data, not parameters: averaged
CHUNK = 1 << 18  # entries per model at a time


def merge(
    readers: Sequence[Checkpoint],
    *,
    base: Checkpoint | Sequence[Checkpoint] | None = None,
    method: str = "pcb",
    onto: Literal["mean", "first"] = "mean",
    out_dtype: torch.dtype | None = None,
    chunk: int = CHUNK,
    average_only: Sequence[str] = DEFAULT_PATTERNS,
    copy_only: Sequence[str] = (),
    statistics: Mapping[str, Mapping[str, Any]] | None = None,
    evidence: Sequence[Checkpoint] | None = None,
    granularity: str | None = None,
    options_by_pattern: OptionsByPattern | None = None,
    **options: Any,
) -> MergedTensors:
    """Merge n task models: an iterator of (name, tensor) in the order of names; memory holds one tensor and one chunk.

    `write_checkpoint` takes it piece by piece (`MergedTensors.pieces`) and needs even less.

    readers: Readers, state dicts or paths with the same tensors. base: the checkpoint they started from, or one per
    model; the *same object* (or path) given twice is one base. The result is the mean of the distinct bases (or the
    first, `onto`) plus the merged task vector; methods that need no base merge the tensors and leave it unread.
    Tensors matching `average_only` are averaged (with the `weights` of a method that averages models); integer tensors,
    counters and tensors matching `copy_only` take the first model's value. Tensors that share storage in every
    checkpoint (`Reader.tied`) are merged once and share it in the result. Arithmetic is float32, rounded once to
    `out_dtype` (default: the first model's dtype, tensor by tensor). chunk: entries per model held at a time; it
    changes no bit of the result.
    statistics: what `method_statistics` gave for the same models, base and options; None computes it in a first pass.
    evidence: per model what the method must know beside the parameters (`registry.get(method).evidence`).
    granularity: "model", "layer" or "tensor": which tensors share statistics; None is the method's own choice.
    options: those of the method (`registry.get(method).options`). options_by_pattern: {pattern: some of them} for the
    tensors whose names match; where two patterns set the same option, the later one wins.
    InputError before anything is yielded: unknown method or option, checkpoints that do not fit each other. InputError
    while iterating: NaN or infinity in a checkpoint or in the result, naming checkpoint and tensor.
    """
    job = prepare(
        readers,
        base=base,
        method=method,
        chunk=chunk,
        average_only=average_only,
        copy_only=copy_only,
        granularity=granularity,
        options_by_pattern=options_by_pattern,
        options=options,
    )
    if onto not in ("mean", "first"):
        raise InputError(f"onto must be 'mean' or 'first', not {onto!r}.")
    if out_dtype is not None and not (isinstance(out_dtype, torch.dtype) and out_dtype.is_floating_point):
        raise InputError(f"out_dtype must be a floating torch.dtype, not {out_dtype!r}.")
    if statistics is not None:
        if job.method.statistics is None:
            raise InputError(f"method {method!r} uses no statistics; leave `statistics` out.")
        statistics = job.accepted(statistics)
    return MergedTensors(with_evidence(job, evidence), onto, out_dtype, statistics)


def method_statistics(
    readers: Sequence[Checkpoint],
    *,
    base: Checkpoint | Sequence[Checkpoint] | None = None,
    method: str = "pcb",
    chunk: int = CHUNK,
    average_only: Sequence[str] = DEFAULT_PATTERNS,
    copy_only: Sequence[str] = (),
    granularity: str | None = None,
    options_by_pattern: OptionsByPattern | None = None,
    **options: Any,
) -> dict[str, dict[str, Any]] | None:
    """What a method must know of whole groups of tensors before it merges them: {group: JSON-able dict}, or None.

    Arguments as of `merge`. The tensors of a group are taken as one vector per model, in the order of their names;
    "model" is the only group of granularity "model" without patterns. Of the options only
    `registry.get(method).statistics_options` matter. Each dict says under "of" what it was computed of: the method, the
    numbers of models and entries, and these options.
    """
    job = prepare(
        readers,
        base=base,
        method=method,
        chunk=chunk,
        average_only=average_only,
        copy_only=copy_only,
        granularity=granularity,
        options_by_pattern=options_by_pattern,
        options=options,
    )
    statistics = job.statistics()
    return None if statistics is None else job.labelled(statistics)


def pattern_matches(
    readers: Sequence[Checkpoint], *, method: str, options_by_pattern: OptionsByPattern
) -> list[PatternMatch]:
    """What each pattern sets and how much of the models it reaches: rows of a table, before anything is merged.

    InputError for wrong options and for patterns that match nothing, with the nearest idea.
    """
    return match_table(registry.get(method), options_by_pattern, open_checkpoint(readers[0]))
