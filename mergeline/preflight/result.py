"""The files of the merged model, as a run would write them: weights, their index, and what goes along."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mergeline.checkpoints.files import is_index, output_name, shard_size
from mergeline.checkpoints.huggingface import companion_sizes
from mergeline.checkpoints.output import file_sizes
from mergeline.checkpoints.readers import Reader
from mergeline.checkpoints.vocabulary import smallest_vocabulary
from mergeline.merging.merged import MergedTensors
from mergeline.merging.registry import get
from mergeline.plan import INITIAL, Plan


def result_files(
    plan: Plan, tensors: MergedTensors, readers: Mapping[str, Reader], paths: Mapping[str, Path | None]
) -> dict[str, int]:
    """Name -> bytes. readers, paths: of the checkpoints, all of which are here.

    The result is laid out like the first task model, or like the one whose vocabulary it gets: a file, or a folder with
    configuration and tokenizer. InputError where its config cannot be read.
    """
    path, vocabulary = _like(plan, readers, paths)
    folder = path.parent if is_index(path.name) else path
    name = output_name(path) if folder.is_dir() else "model.safetensors"
    size = shard_size(name, plan.merge.max_shard_size)
    files = file_sizes(plan.output / name, tensors.specs, size, tensors.metadata)
    if not folder.is_dir():
        return files
    return files | companion_sizes(folder, dtype=plan.merge.out_dtype, vocabulary=vocabulary, untied=tensors.untied)


def _like(plan: Plan, readers: Mapping[str, Reader], paths: Mapping[str, Path | None]) -> tuple[Path, int | None]:
    """The checkpoint that the result is laid out like, and the rows of its vocabulary where not all have the same."""
    names = [model.name for model in plan.task_models]
    if get(plan.merge.method).needs_base:
        names += [model.base for model in plan.task_models if model.base not in (None, INITIAL)]
    smallest = smallest_vocabulary([readers[name] for name in names]) if plan.merge.vocabulary == "common" else None
    place, vocabulary = smallest or (0, None)
    path = paths[names[place]]
    assert path is not None, names[place]  # what is read is here
    return path, vocabulary
