"""Stages: the statistics of a merge (what its method must know of the whole models), and the merge itself.

A large merge is shared out: `merge_range` computes one range of its entries, wherever there is a free worker, into a
draft that all of them see; `merge_models` then has only to give the draft its name.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any

from mergeline.errors import InputError
from mergeline.plan import Merge
from tasks._env import use_one_thread
from tasks.checkpoints import open_artifacts, put_checkpoint
from tasks.locks import STAGE_LOCKS, exclusive, lock_file, shared
from tasks.measuring import measured
from tasks.merge_inputs import MergeInputs
from tasks.policy import action, at_hand, stage, stage_key
from tasks.store import ArtifactRef, put_json, read_json, store_directory

if TYPE_CHECKING:
    from mergeline.checkpoints.output import Layout
    from mergeline.merging.merged import MergedTensors

FORGOTTEN = 7 * 24 * 3600  # seconds after which the draft of a merge that nobody took up again is removed
_at_once = BoundedSemaphore(os.cpu_count() or 1)


def has_statistics(merge: Merge) -> bool:
    """Whether the method must know something of the whole models before it merges them."""
    from mergeline.merging.registry import get

    return get(merge.method).statistics is not None


def competes(merge: Merge) -> bool:
    """Whether the statistics are those of a competition, whose winners can be counted."""
    return merge.method == "pcb"


@contextmanager
def _one_of_few() -> Iterator[None]:
    """One thread's arithmetic, in as many ranges at once as there are processors: each holds a chunk of every model."""
    with _at_once:
        use_one_thread()
        yield


def evidence_of(merge: Merge) -> str | None:
    """What the method must have measured of each model: "fisher", "gram", or nothing."""
    from mergeline.merging.registry import get

    return get(merge.method).evidence


@stage("merge-statistics")
def merge_statistics(inputs: MergeInputs, method: str, options: dict[str, Any]) -> ArtifactRef:
    """What the method must know of the whole models: of PCB-Merging what turns any chunk into its coefficients."""
    from mergeline.merging.engine import method_statistics

    models, bases = inputs.open()
    statistics: Any = method_statistics(models, base=bases, method=method, copy_only=inputs.copy_only, **options)
    return put_json(statistics, "coefficients")


@stage("merge")
def merge_models(name: str, inputs: MergeInputs, coefficients: ArtifactRef | None, merge: Merge) -> ArtifactRef:
    """Stream the task models through the method into one checkpoint; ranges that were merged before are taken over."""
    from mergeline.checkpoints.writer import write_checkpoint

    tensors = merged_tensors(inputs, coefficients, merge)
    like, vocabulary = inputs.like()
    draft = _draft(name, inputs, coefficients, merge)

    def write(path: Path, max_shard_size: int | None) -> None:
        if draft.exists() and _finish(_layout(draft, tensors, path.name, max_shard_size), path.parent):
            return
        write_checkpoint(path, tensors, max_shard_size=max_shard_size)

    adapted: dict[str, Any] = {"dtype": merge.out_dtype, "vocabulary": vocabulary, "untied": tensors.untied}
    with exclusive(lock_file(draft.name + " draft")):
        ref = put_checkpoint(write, like, name, merge.max_shard_size, **adapted)
        shutil.rmtree(draft, ignore_errors=True)
    return ref


@action("merge-range", retries=3)
def merge_range(
    number: int, count: int, name: str, inputs: MergeInputs, coefficients: ArtifactRef | None, merge: Merge
) -> None:
    """Compute the range `number` of `count` of a merge into its draft, unless an earlier attempt has.

    Another run may do the same at this moment: then this one waits for its range, and has nothing to do where that run
    is already making the merge of them, or has made it.
    """
    call: dict[str, Any] = {"name": name, "inputs": inputs, "coefficients": coefficients, "merge": merge}
    key = stage_key(merge_models, **call)
    with exclusive(lock_file(f"{key} {number}")), shared(lock_file(f"{key} draft")), _one_of_few():
        if not STAGE_LOCKS.is_locked(key) and not at_hand(merge_models, **call):
            with measured("merge-range"):
                _write_range(number, count, name, inputs, coefficients, merge)


@contextmanager
def given_up_where_at_fault(calls: Iterable[Mapping[str, Any]]) -> Iterator[None]:
    """Where the models of a merge are at fault, no attempt would end otherwise: then nothing of the drafts is kept.

    calls: the arguments of merges, whose ranges have all ended when the block does.
    """
    try:
        yield
    except InputError:
        for call in calls:
            shutil.rmtree(_draft(**call), ignore_errors=True)
        raise


def merged_tensors(inputs: MergeInputs, coefficients: ArtifactRef | None, merge: Merge) -> MergedTensors:
    """The merged tensors, computed as they are asked for."""
    import torch

    from mergeline.merging.engine import merge as stream

    models, bases = inputs.open()
    statistics: Any = read_json(coefficients) if coefficients else None
    return stream(
        models,
        base=bases or None,
        method=merge.method,
        onto=merge.onto,
        out_dtype=getattr(torch, merge.out_dtype) if merge.out_dtype else None,
        copy_only=inputs.copy_only,
        statistics=statistics,
        evidence=open_artifacts(inputs.evidence) if inputs.evidence else None,
        **merge.grouping,
        **merge.options,
    )


def _write_range(
    number: int, count: int, name: str, inputs: MergeInputs, coefficients: ArtifactRef | None, merge: Merge
) -> None:
    from mergeline.checkpoints.files import output_name, shard_size
    from mergeline.merging.work import split, write_part

    tensors = merged_tensors(inputs, coefficients, merge)
    parts = split(tensors, count)
    if number >= len(parts):  # whole tensors do not fill them all
        return
    draft = _draft(name, inputs, coefficients, merge)
    file = output_name(inputs.like()[0].path)
    write_part(_layout(draft, tensors, file, shard_size(file, merge.max_shard_size)), tensors, parts[number])


def _draft(name: str, inputs: MergeInputs, coefficients: ArtifactRef | None, merge: Merge) -> Path:
    """The folder of a merge in the making: one for all who compute the same with the same code, also after a crash."""
    return store_directory() / "ranges" / stage_key(merge_models, name, inputs, coefficients, merge)


def _layout(draft: Path, tensors: MergedTensors, file: str, max_shard_size: int | None) -> Layout:
    """The files of a draft, laid out by whoever comes first."""
    from mergeline.checkpoints.output import prepare

    with exclusive(draft.parent / "ranges.lock"):
        for other in draft.parent.glob("*/unfinished"):
            with suppress(FileNotFoundError):  # its merge was done a moment ago
                if time.time() - other.stat().st_mtime > FORGOTTEN:
                    shutil.rmtree(other.parent, ignore_errors=True)
        return prepare(
            draft / file,
            tensors.specs,
            max_shard_size=max_shard_size,
            metadata=tensors.metadata,
            scratch=draft / "unfinished",
        )


def _finish(layout: Layout, folder: Path) -> bool:
    """Move a draft into a folder under the names of its files; False where ranges of it are missing."""
    from mergeline.checkpoints.output import publish

    try:
        files = publish(layout).files
    except InputError:  # of an earlier run that was stopped, and this one needs no ranges
        return False
    for file in files:
        (layout.target.parent / file).rename(folder / file)
    return True
