"""A validated merge: which models and bases, and for each tensor what happens to it, with which options."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mergeline.checkpoints.adapters import refuse_unlike_adapters
from mergeline.checkpoints.readers import Reader, TensorReader, open_checkpoint
from mergeline.checkpoints.ties import common_ties
from mergeline.checkpoints.vocabulary import refuse_unlike_vocabularies
from mergeline.errors import InputError
from mergeline.merging import registry
from mergeline.merging.chunks import TaskModels
from mergeline.merging.groups import group_of
from mergeline.merging.layout import check_evidence, check_same_tensors
from mergeline.merging.patterns import OptionsByPattern, check_patterns, is_copied, options_for
from mergeline.threads import one_thread

OF = "of"  # key of the note on what statistics were made of
Checkpoint = Mapping[str, Tensor] | str | Path  # a Reader is a mapping too


@dataclass(frozen=True)
class Treatment:
    """What happens to one tensor. kind: merged by the method, averaged, or copied from the first model."""

    kind: Literal["merged", "averaged", "copied"]
    options: Mapping[str, Any]
    group: str | None  # whose statistics it takes part in
    whole: bool = False  # whether that group is the whole model


@dataclass(frozen=True, eq=False)
class Job:
    """A validated merge. aliases: name -> the tensor whose storage it shares in every checkpoint; both are one."""

    inputs: TaskModels
    grams: Sequence[Reader]
    method: registry.Method
    treatments: Mapping[str, Treatment]
    aliases: Mapping[str, str]
    chunk: int

    @property
    def first(self) -> Reader:
        """The model that decides names, dtypes and whatever is not merged."""
        return self.inputs.models[0]

    def groups(self) -> dict[str, list[str]]:
        """Names of the tensors of each group, a tied tensor once; empty where the method has no statistics."""
        found: dict[str, list[str]] = {}
        for name, treatment in self.treatments.items():
            if treatment.group is not None and name not in self.aliases:
                found.setdefault(treatment.group, []).append(name)
        return {group: names for group, names in found.items() if self._size(names)}

    def statistics(self) -> dict[str, dict[str, Any]] | None:
        """Group -> its statistics; None where the method has none or nothing is merged."""
        if self.method.statistics is None:
            return None
        with one_thread():
            found = {group: self._statistics_of(group, names) for group, names in self.groups().items()}
        return found or None

    def labelled(self, statistics: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """The statistics, those of each group with a note on what they are of, by which `accepted` knows them again."""
        return {group: {OF: self._origin(names), **statistics[group]} for group, names in self.groups().items()}

    def accepted(self, labelled: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """The statistics without the notes; InputError where they are of another method, other options or tensors."""
        if not isinstance(labelled, Mapping):
            raise InputError("statistics must be what `method_statistics` gave.")
        for group, names in self.groups().items():
            if group not in labelled or not isinstance(labelled[group], Mapping):
                raise InputError(
                    f"the statistics hold no group {group!r} (there are {', '.join(map(repr, labelled))}); "
                    "compute them again with the same granularity and options."
                )
            made, wanted = labelled[group].get(OF), self._origin(names)
            if made != wanted:
                raise InputError(
                    f"the statistics of group {group!r} are of {json.dumps(made)}, not of {json.dumps(wanted)}; "
                    "compute them again."
                )
        return {
            group: {name: value for name, value in labelled[group].items() if name != OF} for group in self.groups()
        }

    def _origin(self, names: Sequence[str]) -> dict[str, Any]:
        """What the statistics of a group depend on, but for the numbers in the tensors, as JSON would give it back."""
        settings = self.treatments[names[0]].options
        options = {name: settings[name] for name in self.method.statistics_options}
        count = {"models": len(self.inputs.models), "entries": self._size(names)}
        return {"method": self.method.name, **count, **json.loads(json.dumps(options))}

    def _statistics_of(self, group: str, names: Sequence[str]) -> dict[str, Any]:
        assert self.method.statistics
        settings = self.treatments[names[0]].options
        options = {name: settings[name] for name in self.method.statistics_options}
        if self.method.knows_groups:
            options["whole"] = self.treatments[names[0]].whole
        try:
            return self.method.statistics(lambda: self.inputs.rows(names, self.chunk), self._size(names), **options)
        except InputError as error:
            whole = self.treatments[names[0]].whole
            raise error if whole else InputError(f"{group}: {error}") from None

    def _size(self, names: Sequence[str]) -> int:
        return sum(prod(self.first.shape(name)) for name in names)


def prepare(
    readers: Sequence[Checkpoint],
    *,
    base: Checkpoint | Sequence[Checkpoint] | None,
    method: str,
    chunk: int,
    average_only: Sequence[str],
    copy_only: Sequence[str] = (),
    granularity: str | None,
    options_by_pattern: OptionsByPattern | None,
    options: Mapping[str, Any],
) -> Job:
    """Open and check everything; InputError for what does not fit together."""
    entry = registry.get(method)
    values = entry.validate_options(options)
    grouping = entry.choose_granularity(granularity)
    if not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1:
        raise InputError(f"chunk must be a whole number, at least 1, not {chunk!r}.")
    readers = [] if isinstance(readers, str | Path | Mapping) else list(readers)
    if not readers:
        raise InputError("readers must be a non-empty sequence of checkpoints, one per task model.")
    entry.check_models(len(readers))
    models = [_open(checkpoint, f"readers[{index}]") for index, checkpoint in enumerate(readers)]
    families, family_of = _families(base, len(models), method) if entry.needs_base else ([], [])
    refuse_unlike_adapters(models)
    refuse_unlike_vocabularies([*models, *families])
    check_same_tensors(models[0], [*models[1:], *families])
    aliases = common_ties([reader.tied() for reader in (*models, *families)])
    treatments = _treatments(
        models[0], entry, values, grouping, average_only, copy_only, options_by_pattern or {}, aliases
    )
    return Job(TaskModels(models, families, family_of), [], entry, treatments, aliases, chunk)


def with_evidence(job: Job, evidence: Sequence[Checkpoint] | None) -> Job:
    """The job with what its method must know beside the parameters; InputError where it does not fit."""
    known = _evidence(evidence, job.method, len(job.inputs.models))
    merged = [name for name, treatment in job.treatments.items() if treatment.kind == "merged"]
    check_evidence(job.method.evidence, job.first, merged, known)
    if job.method.evidence in ("gram", "merged_gram"):
        return replace(job, grams=known)
    return replace(job, inputs=replace(job.inputs, evidence=known))


def _treatments(
    first: Reader,
    method: registry.Method,
    options: Mapping[str, Any],
    granularity: registry.Granularity,
    average_only: Sequence[str],
    copy_only: Sequence[str],
    by_pattern: OptionsByPattern,
    aliases: Mapping[str, str],
) -> dict[str, Treatment]:
    """Name -> treatment, in the order of names."""
    copied = {
        name
        for name in first.names()
        if is_copied(first, name) or any(fnmatchcase(name, pattern) for pattern in copy_only)
    }
    check_patterns(method, by_pattern, [name for name in first.names() if name not in copied], aliases)
    found = {}
    for name in first.names():
        own = options_for(aliases.get(name, name), method, by_pattern)
        if name in copied:
            found[name] = Treatment("copied", {}, None)
        elif any(fnmatchcase(name, pattern) for pattern in average_only):
            found[name] = Treatment("averaged", {**options, **own}, None)
        else:
            other = {key: own[key] for key in method.statistics_options if key in own and own[key] != options[key]}
            group = group_of(aliases.get(name, name), granularity, other) if method.statistics else None
            found[name] = Treatment("merged", {**options, **own}, group, granularity == "model" and not other)
    return found


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


def _evidence(evidence: Sequence[Checkpoint] | None, method: registry.Method, models: int) -> list[Reader]:
    if method.evidence is None:
        if evidence is not None:
            raise InputError(f"method {method.name!r} uses no evidence; leave `evidence` out.")
        return []
    kind = registry.EVIDENCE[method.evidence]
    if evidence is None:
        raise InputError(f"method {method.name!r} needs `evidence`: {kind} of each task model.")
    if isinstance(evidence, str | Path | Mapping) or len(evidence) != models:
        raise InputError(f"evidence must be a sequence of {models} checkpoints, one per task model: {kind}.")
    return [_open(checkpoint, f"evidence[{index}]") for index, checkpoint in enumerate(evidence)]


def _open(checkpoint: Checkpoint, role: str) -> Reader:
    """A reader; a plain state dict has no name of its own, so errors call it by its role."""
    if isinstance(checkpoint, Mapping) and not isinstance(checkpoint, Reader):
        return TensorReader(checkpoint, source=role)
    return open_checkpoint(checkpoint)
