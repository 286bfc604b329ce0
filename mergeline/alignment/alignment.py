"""An alignment: for every model and unit family, the permutation that brings it into the reference's unit order."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergeline.alignment.fold import Fold, Zip, Zips
from mergeline.errors import InputError
from mergeline.symmetry.permute import Permutations, group_index
from mergeline.symmetry.symmetry import Symmetry, UnitGroup

PERMUTATIONS, ZIPS = "permutations.safetensors", "zips.safetensors"
SUMMARY, SYMMETRY = "alignment.json", "symmetry.yaml"


@dataclass(frozen=True, eq=False)
class Alignment:
    """One permutation per family per model, model 0 being the reference; with zip, merged units for inner families.

    `permutations[i][family]` is int64 [sizes of the families it lies over..., size]: the old unit at each new place;
    families in `zips` are not permuted, but folded after the others were. `values` is the mean matched similarity of
    each group, `history` the mean over groups after each sweep. epsilon: see `fold.Fold`.
    """

    symmetry: Symmetry
    permutations: tuple[dict[str, Tensor], ...]
    values: Mapping[str, float] = field(default_factory=dict)
    history: tuple[float, ...] = ()
    zips: Zips = field(default_factory=dict)
    epsilon: float = 0.0

    @property
    def models(self) -> int:
        """Number of models."""
        return len(self.permutations)

    @property
    def value(self) -> float:
        """Mean over the groups of the mean matched similarity (nan where nothing was matched)."""
        return sum(self.values.values()) / len(self.values) if self.values else float("nan")

    @cached_property
    def fold(self) -> Fold:
        """Brings tensors, whose outer units are in order, onto the merged units."""
        return Fold(self.symmetry, self.zips, self.models, self.epsilon)

    @property
    def assign(self) -> dict[str, Tensor]:
        """For each group, int64 [models * units]: the merged unit that each original unit goes to, model 0 first."""
        return {
            name: torch.cat([self._places(group, model) for model in range(self.models)])
            for name, group in self.symmetry.groups.items()
        }

    def _places(self, group: UnitGroup, model: int) -> Tensor:
        """The merged unit of each unit of a group: first put in order, then folded."""
        merged = group_index(group.structure, self.symmetry, self.fold.maps[model], self.fold.sizes)
        places = torch.empty_like(merged)
        places[group_index(group.structure, self.symmetry, self.permutations[model])] = merged
        return places

    def of_members(self, families: Sequence[int]) -> Alignment:
        """The alignment of more models: number i is moved as model `families[i]` of this one is."""
        picked = torch.tensor(families)
        zips = {name: Zip(zipped.assign[picked], zipped.width) for name, zipped in self.zips.items()}
        moved = tuple(self.permutations[family] for family in families)
        return replace(self, permutations=moved, zips=zips)

    def inverse(self) -> Alignment:
        """The alignment that undoes this one, bit for bit. Raises InputError for zipped units: they are merged."""
        if self.zips:
            raise InputError("a zip cannot be undone: it merges units of one model")
        return Alignment(self.symmetry, tuple(_inverse_families(self.symmetry, p) for p in self.permutations))

    def then(self, other: Alignment) -> Alignment:
        """This alignment and `other` after it, as one. Raises InputError where they do not fit, or for zipped units."""
        if self.zips or other.zips:
            raise InputError("alignments can be composed where they permute; these merge units")
        if self.symmetry.families != other.symmetry.families or self.models != other.models:
            raise InputError("alignments can be composed where they are of the same families and number of models")
        pairs = zip(self.permutations, other.permutations, strict=True)
        return Alignment(self.symmetry, tuple(_composed_families(self.symmetry, *pair) for pair in pairs))

    def save(self, directory: str | Path) -> None:
        """Write the maps (safetensors), `alignment.json` and `symmetry.yaml` into a folder, made where missing."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{model}/{family}": permutation.to(torch.int32).contiguous()
            for model, families in enumerate(self.permutations)
            for family, permutation in families.items()
        }
        save_file(tensors, folder / PERMUTATIONS)
        if self.zips:
            zips = {family: zipped.assign.to(torch.int32).contiguous() for family, zipped in self.zips.items()}
            save_file(zips, folder / ZIPS)
        summary = {
            "models": self.models,
            "value": None if math.isnan(self.value) else self.value,
            "values": dict(self.values),
            "history": list(self.history),
            "widths": {family: zipped.width for family, zipped in self.zips.items()},
            "epsilon": self.epsilon,
        }
        (folder / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n")
        (folder / SYMMETRY).write_text(self.symmetry.to_yaml())

    @staticmethod
    def load(directory: str | Path) -> Alignment:
        """Read what `save` wrote. Raises InputError naming the file that is missing or does not fit."""
        folder = Path(directory)
        for name in (PERMUTATIONS, SUMMARY, SYMMETRY):
            if not (folder / name).is_file():
                raise InputError(f"{folder / name} is missing: this is not a saved alignment")
        try:
            alignment = _read(folder)
        except (KeyError, ValueError, SafetensorError) as fault:
            if isinstance(fault, InputError):
                raise
            raise InputError(
                f"{folder}: this is not an alignment as it was saved ({fault!r}); make it again"
            ) from fault
        for model, families in enumerate(alignment.permutations):
            _check(families, alignment.symmetry, folder / PERMUTATIONS, model)
        return alignment


def identity_alignment(symmetry: Symmetry, models: int) -> Alignment:
    """The alignment that leaves every model as it is."""
    return Alignment(symmetry, tuple(symmetry.identity() for _ in range(models)))


def random_alignment(symmetry: Symmetry, models: int, seed: int = 0) -> Alignment:
    """One that moves the units of every model but the first at random, each in its own way."""
    moved = (symmetry.random_permutations(seed + model) for model in range(1, models))
    return Alignment(symmetry, (symmetry.identity(), *moved))


def _read(folder: Path) -> Alignment:
    symmetry = Symmetry.from_yaml((folder / SYMMETRY).read_text())
    summary = json.loads((folder / SUMMARY).read_text())
    tensors = load_file(folder / PERMUTATIONS)
    permutations = tuple(
        {family: tensors[f"{model}/{family}"].long() for family in symmetry.families}
        for model in range(summary["models"])
    )
    zips = _load_zips(folder, symmetry, summary["widths"], summary["models"])
    return Alignment(symmetry, permutations, summary["values"], tuple(summary["history"]), zips, summary["epsilon"])


def _inverse_families(symmetry: Symmetry, permutations: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of every family: inner units were reordered at the new place of their outer unit, so look there."""
    inverses: dict[str, Tensor] = {}
    for name, family in symmetry.families.items():
        inverse = permutations[name].argsort(dim=-1)
        if family.over:
            rows, new_outer = inverse.reshape(-1, family.size), group_index(family.over, symmetry, permutations)
            inverse = rows[new_outer.argsort()].reshape(inverse.shape)
        inverses[name] = inverse
    return inverses


def _composed_families(symmetry: Symmetry, first: Permutations, second: Permutations) -> dict[str, Tensor]:
    """Each place takes the unit that the first permutation put where the second one looks."""
    composed: dict[str, Tensor] = {}
    for name, family in symmetry.families.items():
        rows = first[name].reshape(-1, family.size)
        if family.over:
            rows = rows[group_index(family.over, symmetry, second)]
        composed[name] = rows.gather(1, second[name].reshape(-1, family.size)).reshape(first[name].shape)
    return composed


def _load_zips(folder: Path, symmetry: Symmetry, widths: Mapping[str, int], models: int) -> dict[str, Zip]:
    if not widths:
        return {}
    if not (folder / ZIPS).is_file():
        raise InputError(f"{folder / ZIPS} is missing: the alignment merges units")
    stored = load_file(folder / ZIPS)
    if set(stored) != set(widths):
        raise InputError(f"{folder / ZIPS}: holds {sorted(stored)}, but {SUMMARY} tells of {sorted(widths)}")
    zips = {family: Zip(assign.long(), widths[family]) for family, assign in stored.items()}
    for family, zipped in zips.items():
        shape = (models, *symmetry.identity()[family].shape)
        if zipped.assign.shape != shape or zipped.assign.min() < 0 or zipped.assign.max() >= zipped.width:
            raise InputError(f"{folder / ZIPS}: '{family}' does not send {list(shape)} units to {zipped.width}")
    return zips


def _check(families: Mapping[str, Tensor], symmetry: Symmetry, path: Path, model: int) -> None:
    identity = symmetry.identity()
    for name, permutation in families.items():
        if not torch.equal(permutation.sort(dim=-1).values, identity[name]):
            raise InputError(f"{path}: '{model}/{name}' is not a permutation of {symmetry.sizes[name]} units")
