"""An alignment: for every model and unit family, the permutation that brings it into the reference's unit order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergeline.errors import InputError
from mergeline.symmetry.permute import group_index
from mergeline.symmetry.symmetry import Symmetry


@dataclass(frozen=True, eq=False)
class Alignment:
    """One permutation per family per model; model 0 is the reference.

    `permutations[i][family]` is int64 [sizes of the families it lies over..., size]: the old unit at each new place.
    `values` is the mean matched similarity of each group, `history` the mean over groups after each sweep.
    """

    symmetry: Symmetry
    permutations: tuple[dict[str, Tensor], ...]
    values: Mapping[str, float] = field(default_factory=dict)
    history: tuple[float, ...] = ()

    @property
    def models(self) -> int:
        """Number of models."""
        return len(self.permutations)

    @property
    def value(self) -> float:
        """Mean over the groups of the mean matched similarity (nan where nothing was matched)."""
        return sum(self.values.values()) / len(self.values) if self.values else float("nan")

    @property
    def assign(self) -> dict[str, Tensor]:
        """For each group, int64 [models * units]: the merged unit that each original unit goes to, model 0 first."""
        return {
            name: torch.cat([group_index(group.structure, self.symmetry, p).argsort() for p in self.permutations])
            for name, group in self.symmetry.groups.items()
        }

    def inverse(self) -> Alignment:
        """The alignment that undoes this one, bit for bit."""
        return Alignment(self.symmetry, tuple(_inverse_families(self.symmetry, p) for p in self.permutations))

    def save(self, directory: str | Path) -> None:
        """Write `permutations.safetensors`, `alignment.json` and `symmetry.yaml` into a folder, made where missing."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{model}/{family}": permutation.to(torch.int32).contiguous()
            for model, families in enumerate(self.permutations)
            for family, permutation in families.items()
        }
        save_file(tensors, folder / "permutations.safetensors")
        summary = {"models": self.models, "values": dict(self.values), "history": list(self.history)}
        (folder / "alignment.json").write_text(json.dumps(summary, indent=1) + "\n")
        (folder / "symmetry.yaml").write_text(self.symmetry.to_yaml())

    @staticmethod
    def load(directory: str | Path) -> Alignment:
        """Read what `save` wrote. Raises InputError naming the file that is missing or does not fit."""
        folder = Path(directory)
        for name in ("permutations.safetensors", "alignment.json", "symmetry.yaml"):
            if not (folder / name).is_file():
                raise InputError(f"{folder / name} is missing: this is not a saved alignment")
        symmetry = Symmetry.from_yaml((folder / "symmetry.yaml").read_text())
        summary = json.loads((folder / "alignment.json").read_text())
        tensors = load_file(folder / "permutations.safetensors")
        permutations = []
        for model in range(summary["models"]):
            families = {family: tensors[f"{model}/{family}"].long() for family in symmetry.families}
            _check(families, symmetry, folder / "permutations.safetensors", model)
            permutations.append(families)
        return Alignment(symmetry, tuple(permutations), summary["values"], tuple(summary["history"]))


def identity_alignment(symmetry: Symmetry, models: int) -> Alignment:
    """The alignment that leaves every model as it is."""
    return Alignment(symmetry, tuple(symmetry.identity() for _ in range(models)))


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


def _check(families: Mapping[str, Tensor], symmetry: Symmetry, path: Path, model: int) -> None:
    for name, permutation in families.items():
        expected = torch.arange(symmetry.sizes[name]).expand_as(permutation)
        if permutation.shape[-1] != symmetry.sizes[name] or not torch.equal(permutation.sort(dim=-1).values, expected):
            raise InputError(f"{path}: '{model}/{name}' is not a permutation of {symmetry.sizes[name]} units")
