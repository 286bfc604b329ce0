"""Weight space: how alike the weights that write and read two units are (MuDSC section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergeline.alignment.alignment import Alignment
from mergeline.alignment.fold import Fold
from mergeline.checkpoints.readers import Reader, open_checkpoint
from mergeline.errors import InputError
from mergeline.similarity.correlation import correlation, gram
from mergeline.symmetry.permute import Permutations, group_index, outer_dims, permute_tensor
from mergeline.symmetry.symmetry import Axis, ParameterLayout, Symmetry
from mergeline.symmetry.units import units_first

STATISTICS = ("running_mean", "running_var")
"""Last part of the names of tensors that are no weights, and so have no part in weight similarity."""


def weight_axes(symmetry: Symmetry, group: str) -> list[Axis]:
    """The axes of a group that are weights: running statistics are measured, not learned."""
    return [axis for axis in symmetry.groups[group].axes if axis.param.rpartition(".")[2] not in STATISTICS]


class WeightRows:
    """The weights of the units of several models as rows, under alignments that change from call to call.

    Every parameter with an axis on a group gives one block of columns; its other axes are first brought onto the
    common units, so that columns of different models mean the same.
    """

    def __init__(self, readers: Sequence[Reader], symmetry: Symmetry) -> None:
        """Raises InputError where there are no readers, or one does not have the tensors of the symmetry."""
        if not readers:
            raise InputError("weight similarity: there are no models")
        for reader in readers:
            shapes = {name: reader.shape(name) for name in reader.names()}
            symmetry.check_shapes(reader.source, shapes, units_only=True)
        self.readers = tuple(readers)
        self.symmetry = symmetry
        self._finite: set[tuple[int, str]] = set()
        self._references: dict[str, Rows] = {}
        self._deviations: dict[tuple[int, str], Tensor] = {}

    def rows(self, model: int, group: str, permutations: Permutations, fold: Fold | None = None) -> Tensor:
        """All weights of each unit of a group as one row, float32 [units, weights], in the model's own order."""
        blocks = [
            self._block(self.read(model, axis.param), axis, group, permutations, fold, model)
            for axis in self.axes(group)
        ]
        return torch.cat(blocks, dim=1)

    def axes(self, group: str) -> list[Axis]:
        """The axes whose weights are compared: not those of heads of unlike tasks, which differ in shape."""
        return [
            axis
            for axis in weight_axes(self.symmetry, group)
            if len({reader.shape(axis.param) for reader in self.readers}) == 1
        ]

    def read(self, model: int, name: str) -> Tensor:
        """A tensor as float32. Raises InputError where it holds NaN or Inf."""
        tensor = self.readers[model].read(name).float()
        if (model, name) not in self._finite and not tensor.isfinite().all():
            raise InputError(f"{self.readers[model].source}: tensor '{name}' holds NaN or Inf")
        self._finite.add((model, name))
        return tensor

    def _block(
        self, tensor: Tensor, axis: Axis, group: str, permutations: Permutations, fold: Fold | None, model: int
    ) -> Tensor:
        path, layout = self.symmetry.groups[group].structure, self.symmetry.parameters[axis.param]
        dim = self.own_axis(layout, axis)
        moved = permute_tensor(tensor, layout, self.symmetry, permutations, keep=dim)
        if fold is not None:
            moved = (fold if dim is not None else fold.without(path))(moved, layout, model, keep=dim)
        rows = units_first(moved, axis.span, self.symmetry.sizes)
        return rows if dim is not None else rows[group_index(path, self.symmetry, permutations).argsort()]

    def own_axis(self, layout: ParameterLayout, axis: Axis) -> int | None:
        """The axis of the tensor that alone holds the units of a group; none where others have a say in it."""
        dims = {dim for dim, _ in axis.span.places}
        others = [j for j in range(len(layout.dims)) if j != axis.dim]
        linked = len(dims) > 1 or any(axis.dim in outer_dims(layout, self.symmetry, j) for j in others)
        return None if linked else axis.dim

    def cross(self, group: str, permutations: Sequence[Permutations]) -> Tensor:
        """Similarity of the units of model 0 with those of every other model, float32 [units, (n - 1) * units].

        Model 0 must be in its own order. Its rows, and the spread of all rows, are computed once: permuting columns
        does not change them.
        """
        if group not in self._references:
            self._references[group] = Rows.of(self.rows(0, group, permutations[0]))
        reference = self._references[group]
        blocks = [reference.centred.new_empty(len(reference.centred), 0)]
        for model in range(1, len(self.readers)):
            rows = self.rows(model, group, permutations[model])
            if (model, group) not in self._deviations:
                self._deviations[model, group] = Rows.of(rows).deviation
            # the reference is centred, so the mean of the other rows drops out
            covariance = reference.centred @ rows.T / rows.shape[1]
            blocks.append(correlation(covariance, reference.deviation, self._deviations[model, group]))
        return torch.cat(blocks, dim=1)

    def full(self, group: str, permutations: Sequence[Permutations], fold: Fold | None = None) -> Tensor:
        """Similarity of the units of all models, float32 [n * units, n * units]."""
        rows = [self.rows(model, group, orders, fold) for model, orders in enumerate(permutations)]
        stacked = Rows.of(torch.cat(rows))
        return stacked.correlation(stacked)


@dataclass(frozen=True)
class Rows:
    """Centred weight rows [units, weights] and their population standard deviations [units]."""

    centred: Tensor
    deviation: Tensor

    @staticmethod
    def of(rows: Tensor) -> Rows:
        """Centre the rows and measure their spread."""
        centred = rows - rows.mean(dim=1, keepdim=True)
        return Rows(centred, centred.square().mean(dim=1).sqrt())

    def correlation(self, other: Rows) -> Tensor:
        """Pearson correlation of every row with every row of `other`, [units, units of other]."""
        products = gram(self.centred) if other is self else self.centred @ other.centred.T
        return correlation(products / self.centred.shape[1], self.deviation, other.deviation)


def weight_similarity(
    state_dicts: Sequence[Mapping[str, Tensor]], symmetry: Symmetry, alignment: Alignment | None = None
) -> dict[str, Tensor]:
    """Correlation of the weights of all units of all models, {group: float32 [n * units, n * units]}.

    state_dicts: state dicts or readers of n models. alignment: the current order of the neighbouring groups (none:
    as they are); the units themselves are listed in each model's own order, model 0 first.
    Raises InputError where models, symmetry and alignment do not fit.
    """
    weights = WeightRows([open_checkpoint(state) for state in state_dicts], symmetry)
    if alignment is None:
        orders, fold = [symmetry.identity()] * len(weights.readers), None
    elif alignment.models != len(weights.readers):
        raise InputError(f"weight similarity: {len(weights.readers)} models, but the alignment has {alignment.models}")
    else:
        orders, fold = list(alignment.permutations), alignment.fold if alignment.zips else None
    return {group: weights.full(group, orders, fold) for group in symmetry.groups}
