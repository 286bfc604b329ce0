"""Look at a plan before it runs: its checkpoints, whether they fit, what the merge takes and leaves."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

import mergeline.merging  # noqa: F401  registers the methods
from mergeline.checkpoints.adapters import InitialAdapterReader
from mergeline.checkpoints.heads import patterns_of, with_one_head
from mergeline.checkpoints.readers import Reader, open_checkpoint
from mergeline.checkpoints.transfer import shown
from mergeline.checkpoints.vocabulary import common_rows
from mergeline.comparison import aligns, comparison_rows, is_merged
from mergeline.errors import InputError
from mergeline.merging.engine import CHUNK, DEFAULT_PATTERNS
from mergeline.merging.job import prepare
from mergeline.merging.merged import MergedTensors
from mergeline.merging.patterns import PatternMatch, match_table
from mergeline.merging.registry import get
from mergeline.models.place import missing_device
from mergeline.plan import INITIAL, Merge, Plan
from mergeline.preflight.distances import alarm, distance
from mergeline.preflight.findings import Distance, Forecast, Preflight, Source
from mergeline.preflight.forecast import existing_parent, free_space, memory, trial
from mergeline.preflight.result import result_files
from mergeline.preflight.sources import Locate, ask, describe, located
from mergeline.preflight.tensors import unfitting


@dataclass(frozen=True)
class _Opened:
    """The checkpoints of a plan. readers: those that are here and whole, in the plan's order; faults: of the others."""

    sources: dict[str, Source]
    readers: dict[str, Reader]
    faults: list[str]


def inspect_plan(plan: Plan, *, held: Locate = lambda sha256: None, beside: Sequence[str] = ()) -> Preflight:
    """What a run of the plan would read, write and take, and what would stop it; nothing is written or downloaded.

    held: where a pinned file that was fetched before lies, by its digest. beside: what is published with the model.
    Checkpoints that are not here are asked for their sizes only, and what they hold is not known: then only the others
    are compared.
    """
    opened = _open_all(plan, held)
    faults = [*opened.faults, *_output_faults(plan.output)]
    common = plan.merge.vocabulary == "common"
    if len(opened.readers) > 1:
        fitted, wrong = _with_one_head(plan, opened.readers)
        faults += wrong or unfitting(fitted, common_vocabulary=common)
    distances, alarms, unreadable = _distances(plan, opened.readers)
    faults += unreadable
    patterns, wrong = _patterns(
        plan.merge, [opened.readers[m.name] for m in plan.task_models if m.name in opened.readers]
    )
    faults += wrong
    files = None
    if not faults:
        files, refused = _files(plan, opened)
        faults += refused
    forecast = None if faults else _forecast(plan, opened, files, _speed(opened.readers))
    if forecast is not None:
        alarms += _space_alarms(plan.output, forecast)
    if missing := missing_device(plan.evaluation.device):
        alarms.append(missing)  # no fault: the run may be meant for another machine
    sources = list(opened.sources.values())
    beside = [name for name in beside if name not in (files or {})]
    return Preflight(sources, plan.output, files, beside, distances, patterns, forecast, faults, alarms)


def _open_all(plan: Plan, held: Locate) -> _Opened:
    paths = {spec.name: located(spec.uri, spec.sha256, held) for spec in plan.checkpoints}
    remote = {spec.name: spec.uri for spec in plan.checkpoints if paths[spec.name] is None}
    asked = dict(zip(remote, ask(remote), strict=True))
    opened = _Opened({}, {}, [])
    for index, spec in enumerate(plan.checkpoints):
        path = paths[spec.name]
        if path is None:
            source = opened.sources[spec.name] = asked[spec.name]
            if source.lost:
                opened.faults.append(f"checkpoints[{index}] ({spec.name}): {source.uri}: {source.note}")
            continue
        try:
            reader = open_checkpoint(path)
            opened.sources[spec.name] = describe(spec.name, spec.uri, path, reader)
        except InputError as fault:
            opened.faults.append(f"checkpoints[{index}] ({spec.name}): {fault}")
            opened.sources[spec.name] = Source(spec.name, shown(spec.uri), path, note="cannot be opened")
            continue
        reader.source = spec.name
        opened.readers[spec.name] = reader
    return opened


def _base_reader(plan: Plan, name: str, readers: Mapping[str, Reader]) -> Reader | None:
    """The reader of a task model's base, if it is here; of adapters what they are before training."""
    base = next(spec.base for spec in plan.checkpoints if spec.name == name)
    if base == INITIAL:
        return InitialAdapterReader(readers[name])
    return readers.get(base) if base else None


def _distances(plan: Plan, readers: Mapping[str, Reader]) -> tuple[list[Distance], list[str], list[str]]:
    """Each task model and its base, alarms, and faults: NaN met on the way."""
    found, alarms, faults = [], [], []
    bases = {base.name: readers[base.name] for base in plan.bases if base.name in readers}
    for model in plan.task_models:
        if model.name not in readers or model.base not in bases:
            continue
        try:
            own = distance(readers[model.name], bases[model.base])
            if own is None:
                continue
            found.append(own)
            said = alarm(own, [])
            if said and len(bases) > 1:
                others = [distance(readers[model.name], base) for name, base in bases.items() if name != model.base]
                said = alarm(own, [other for other in others if other is not None])
        except ValueError as fault:
            faults.append(f"{model.name} or its base {model.base}: tensor '{fault}' holds NaN or infinity")
            continue
        if said:
            index = plan.checkpoints.index(model)
            alarms.append(f"checkpoints[{index}].base: {said}")
    return found, alarms, faults


def _with_one_head(plan: Plan, readers: Mapping[str, Reader]) -> tuple[list[Reader], list[str]]:
    """The checkpoints but for the heads that are not merged, or what is wrong with these. The heads are those of the
    first task model: a base may have none."""
    if not plan.heads:
        return list(readers.values()), []
    models = [readers[model.name] for model in plan.task_models if model.name in readers]
    others = [reader for reader in readers.values() if reader not in models]
    if not models:
        return others[:1], []  # nothing here has heads that bases could be given
    try:
        return with_one_head([*models, *others], plan.heads), []
    except InputError as fault:
        return [*models, *others], [str(fault)]


def _patterns(merge: Merge, models: Sequence[Reader]) -> tuple[list[PatternMatch], list[str]]:
    if not merge.options_by_pattern or not models:
        return [], []
    try:
        return match_table(get(merge.method), merge.options_by_pattern, models[0]), []
    except InputError as fault:
        return [], [f"merge.{fault}"]


def _files(plan: Plan, opened: _Opened) -> tuple[dict[str, int] | None, list[str]]:
    """Files of the result and their bytes, by the engine's own checks; None where some checkpoints are not here."""
    readers = opened.readers
    models = [readers.get(model.name) for model in plan.task_models]
    needs_base = get(plan.merge.method).needs_base
    if None in models:
        return None, []
    try:
        bases = [_base_reader(plan, model.name, readers) for model in plan.task_models] if needs_base else []
        if None in bases:
            return None, []
        every = [reader for reader in [*models, *bases] if reader is not None]
        if plan.merge.vocabulary == "common":
            every = common_rows(every)
        every = with_one_head(every, plan.heads)
        dtype = getattr(torch, plan.merge.out_dtype) if plan.merge.out_dtype else None
        job = prepare(
            every[: len(models)],
            base=every[len(models) :] or None,
            method=plan.merge.method,
            chunk=CHUNK,
            average_only=DEFAULT_PATTERNS,
            copy_only=patterns_of(plan.heads),
            granularity=plan.merge.granularity,
            options_by_pattern=plan.merge.options_by_pattern,
            options=plan.merge.options,
        )
        tensors = MergedTensors(job, plan.merge.onto, dtype, None)
        paths = {name: source.path for name, source in opened.sources.items()}
        return result_files(plan, tensors, readers, paths), []
    except InputError as fault:
        return None, [f"merge: {fault}"]


def _speed(readers: Mapping[str, Reader]) -> float | None:
    """Bytes a second that come in from the disk, or from memory where the system kept them; by reading a little."""
    read, began = 0, time.perf_counter()
    for reader in readers.values():
        for name in reader.names():
            part = reader.read_flat(name, 0, min(prod(reader.shape(name)), 1 << 20))
            part.sum()
            read += part.numel() * part.element_size()
            if time.perf_counter() - began > 0.5:
                return read / (time.perf_counter() - began)
    return read / (time.perf_counter() - began) if read else None


def _forecast(plan: Plan, opened: _Opened, files: Mapping[str, int] | None, speed: float | None) -> Forecast | None:
    """What all merges of the run take; None where too little is known to say anything."""
    models = [opened.readers[model.name] for model in plan.task_models if model.name in opened.readers]
    if not models:
        return None
    first = models[0]
    entries = sum(prod(first.shape(name)) for name in first.names() if name not in first.aliases())
    dtype = max((first.dtype(name) for name in first.names()), key=lambda dtype: dtype.is_floating_point)
    bases = {model.base or "" for model in plan.task_models}
    used = [*plan.task_models, *(plan.bases if get(plan.merge.method).needs_base else [])]
    read = sum(opened.sources[spec.name].bytes or 0 for spec in used)
    written = sum(files.values()) if files else opened.sources[plan.task_models[0].name].bytes or 0
    merges = [row.merge for row in comparison_rows(plan) if is_merged(row)]
    trials = [
        trial(
            merge.method,
            merge.options,
            models=len(plan.task_models),
            bases=len(bases),
            granularity=merge.granularity,
            dtype=dtype,
        )
        for merge in merges
    ]
    seconds = [found.seconds * entries + (read + written) / speed for found in trials if found and speed]
    return Forecast(
        merges=len(merges),
        read=read,
        written=written,
        passes=trials[-1].passes if trials[-1] else None,
        memory=memory(
            plan.merge.method,
            [first.shape(name) for name in first.names()],
            models=len(plan.task_models),
            bases=len(bases) if get(plan.merge.method).needs_base else 0,
            aligned=aligns(plan),
        ),
        seconds=sum(seconds) if len(seconds) == len(merges) else None,
        download=sum(source.bytes or 0 for source in opened.sources.values() if source.path is None),
        complete=all(opened.sources[spec.name].bytes is not None for spec in used),
    )


def _output_faults(folder: Path) -> list[str]:
    """Where the folder of the result cannot be made."""
    place = existing_parent(folder)
    if place.is_dir() and os.access(place, os.W_OK):
        return []
    return [f"output: '{folder}' cannot be written: '{place}' is no folder that may be written to; choose another one"]


def _space_alarms(folder: Path, forecast: Forecast) -> list[str]:
    """Where the disk of the result has no room for it and for what is downloaded."""
    needed, free = forecast.written + forecast.download, free_space(folder)
    if needed < free:
        return []
    return [
        f"output: the result and the downloads take {needed / 1e9:.1f} GB, the disk of '{folder}' has "
        f"{free / 1e9:.1f} GB left; free some, or write elsewhere (output, MERGELINE_STATE)"
    ]
