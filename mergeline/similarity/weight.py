"""Weight space: how alike the weights that write and read two units are (MuDSC section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergeline.alignment.alignment import Alignment, identity_alignment
from mergeline.checkpoints.readers import Reader, open_checkpoint
from mergeline.errors import InputError
from mergeline.similarity.correlation import correlation
from mergeline.symmetry.permute import Permutations, group_index, permute_tensor
from mergeline.symmetry.symmetry import Axis, Symmetry
from mergeline.symmetry.units import units_first

STATISTICS = ("running_mean", "running_var")
"""Last part of the names of tensors that are no weights, and so have no part in weight similarity."""


def weight_axes(symmetry: Symmetry, group: str) -> list[Axis]:
    """The axes of a group that are weights: running statistics are measured, not learned."""
    return [axis for axis in symmetry.groups[group].axes if axis.param.rpartition(".")[2] not in STATISTICS]


def unit_rows(reader: Reader, symmetry: Symmetry, group: str, permutations: Permutations) -> Tensor:
    """All weights of each unit of a group as one row, float32 [units, weights], rows in the reader's own order.

    Every parameter with an axis on the group gives one block of columns; its other axes are first brought into the
    order that `permutations` say, so that columns of different models mean the same.
    """
    blocks = []
    for axis in weight_axes(symmetry, group):
        tensor = permute_tensor(reader.read(axis.param), symmetry.parameters[axis.param], symmetry, permutations)
        blocks.append(units_first(tensor, axis.span, symmetry.sizes).float())
    places = group_index(symmetry.groups[group].structure, symmetry, permutations).argsort()
    return torch.cat(blocks, dim=1)[places]


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
        covariance = self.centred @ other.centred.T / self.centred.shape[1]
        return correlation(covariance, self.deviation, other.deviation)


def group_similarity(
    readers: Sequence[Reader], symmetry: Symmetry, group: str, permutations: Sequence[Permutations]
) -> Tensor:
    """Similarity of the units of model 0 with those of every other model, float32 [units, (n - 1) * units]."""
    reference = Rows.of(unit_rows(readers[0], symmetry, group, permutations[0]))
    return torch.cat(
        [
            reference.correlation(Rows.of(unit_rows(reader, symmetry, group, permutation)))
            for reader, permutation in zip(readers[1:], permutations[1:], strict=True)
        ],
        dim=1,
    )


def weight_similarity(
    state_dicts: Sequence[Mapping[str, Tensor]], symmetry: Symmetry, alignment: Alignment | None = None
) -> dict[str, Tensor]:
    """Correlation of the weights of all units of all models, {group: float32 [n * units, n * units]}.

    state_dicts: state dicts or readers of n models. alignment: the current order of the neighbouring groups (none:
    as they are); the units themselves are listed in each model's own order, model 0 first.
    """
    readers = [open_checkpoint(state) for state in state_dicts]
    for reader in readers:
        symmetry.check_shapes(reader.source, {name: reader.shape(name) for name in reader.names()})
    alignment = alignment or identity_alignment(symmetry, len(readers))
    if alignment.models != len(readers):
        raise InputError(f"weight similarity: {len(readers)} models, but the alignment has {alignment.models}")
    similarity = {}
    for group in symmetry.groups:
        rows = [unit_rows(r, symmetry, group, p) for r, p in zip(readers, alignment.permutations, strict=True)]
        stacked = Rows.of(torch.cat(rows))
        similarity[group] = stacked.correlation(stacked)
    return similarity
