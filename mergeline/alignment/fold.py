"""Zipped units: the axes of a tensor folded onto the merged units (MuDSC section 3.3, ZipIt's merge and unmerge)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from mergeline.symmetry.layout import Fixed, families_of, width
from mergeline.symmetry.permute import Permutations, axis_indices
from mergeline.symmetry.symmetry import CONSUMER, ParameterLayout, Symmetry

EPSILON = 1e-5
"""What the authors' program adds to the size of each merged unit; it shrinks weights by 5e-6."""


@dataclass(frozen=True, eq=False)
class Zip:
    """The merged unit of each unit of a family, in all models.

    assign: int64 [models, sizes of the families it lies over..., size]. width: how many merged units there are.
    """

    assign: Tensor
    width: int


Zips = Mapping[str, Zip]


@dataclass(frozen=True)
class Fold:
    """Brings tensors of one of several models onto merged units.

    An axis that writes or scales units gets, for each merged unit, the model's part of the mean over all units in it,
    times the number of models: the mean over the models is then the mean over the units. An axis that reads units gets
    the sum, because what reads the merged unit reads it in the place of each. swap: the other way round.
    epsilon: added to the number of units in a merged unit.
    """

    symmetry: Symmetry
    zips: Zips
    models: int
    epsilon: float = 0.0
    swap: bool = False

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Number of units of each family after zipping."""
        return {**self.symmetry.sizes, **{family: zipped.width for family, zipped in self.zips.items()}}

    def shape(self, layout: ParameterLayout, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of a tensor after zipping; axes without units keep their length."""
        return tuple(
            length if isinstance(dim, Fixed) else width(dim, self.sizes)
            for dim, length in zip(layout.dims, shape, strict=True)
        )

    def without(self, families: Collection[str]) -> Fold:
        """The same, but the units of these families stay apart."""
        return replace(self, zips={name: zipped for name, zipped in self.zips.items() if name not in families})

    def __call__(self, tensor: Tensor, layout: ParameterLayout, model: int, keep: int | None = None) -> Tensor:
        """The tensor of a model on merged units, float32, but for one axis (`keep`) if wanted.

        Its outer units must be in the new order already.
        """
        zipped = {dim for dim, axis in enumerate(layout.dims) if any(name in self.zips for name in families_of(axis))}
        folded = tensor.float()
        if not zipped - {keep}:
            return folded
        for dim, index in reversed(self._indices(layout, model)):
            if dim not in zipped or dim == keep:
                continue
            length = width(layout.dims[dim], self.sizes)
            folded = add_up(folded, dim, index.to(folded.device), length)
            if self.is_shared(layout.roles[dim]):
                folded *= self._shares(layout, dim, length).to(folded.device)
        return folded

    def is_shared(self, role: str) -> bool:
        """Whether merged units get the mean over their units on an axis of this role, not the sum."""
        return (role == CONSUMER) == self.swap

    def share(self, units: Tensor) -> Tensor:
        """What a model's sum over the units in a merged one counts, given how many there are in all models."""
        return self.models / (units.float() + self.epsilon)

    def _indices(self, layout: ParameterLayout, model: int) -> list[tuple[int, Tensor]]:
        return list(axis_indices(layout, self.symmetry, self.maps[model], self.sizes))

    @cached_property
    def maps(self) -> list[Permutations]:
        """For each model, the merged unit of each unit of every family, int64 [over..., size]."""
        identity = self.symmetry.identity()
        return [
            {**identity, **{family: zipped.assign[model] for family, zipped in self.zips.items()}}
            for model in range(self.models)
        ]

    def _shares(self, layout: ParameterLayout, dim: int, length: int) -> Tensor:
        """The share of each merged unit, as a tensor that fits the folded one."""
        count = torch.zeros(())
        for model in range(self.models):
            index = dict(self._indices(layout, model))[dim]
            if index.ndim == 1:
                index = index.reshape([-1 if j == dim else 1 for j in range(len(layout.dims))])
            count = count + add_up(torch.ones(index.shape), dim, index, length)
        return self.share(count)


def add_up(tensor: Tensor, dim: int, index: Tensor, length: int) -> Tensor:
    """Slices along an axis added up at new places."""
    shape = list(tensor.shape)
    shape[dim] = length
    if index.ndim == 1:
        return tensor.new_zeros(shape).index_add_(dim, index, tensor)
    return tensor.new_zeros(shape).scatter_add_(dim, index.expand_as(tensor), tensor)
