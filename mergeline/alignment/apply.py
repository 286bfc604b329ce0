"""Aligned checkpoints are views: a tensor is permuted, or folded onto merged units, when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from mergeline.alignment.alignment import Alignment
from mergeline.checkpoints.readers import Reader, open_checkpoint
from mergeline.checkpoints.ties import ties_by
from mergeline.errors import InputError
from mergeline.symmetry.permute import outer_dims, permute_rows, permute_tensor


class AlignedReader(Reader):
    """A checkpoint in the common unit order; nothing is computed until a tensor is read."""

    def __init__(self, reader: Reader, alignment: Alignment, model_index: int) -> None:
        """`model_index` selects whose permutations to apply. Raises InputError where the shapes do not fit."""
        if not 0 <= model_index < alignment.models:
            raise InputError(f"{reader.source}: the alignment has no model {model_index} (it has {alignment.models})")
        symmetry = alignment.symmetry
        symmetry.check_shapes(reader.source, {name: reader.shape(name) for name in reader.names()}, units_only=True)
        self.source = reader.source
        self._reader = reader
        self._alignment = alignment
        self._model = model_index
        self._rows = (("", 0, 0), torch.empty(0))  # tensor and span of the rows that were read last, and the rows
        self._layouts = dict(symmetry.parameters)
        for layout in symmetry.parameters.values():
            self._layouts.update(dict.fromkeys(layout.tied, layout))

    def names(self) -> list[str]:
        """Names of the checkpoint's tensors, sorted."""
        return self._reader.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor: zip may change the number of units."""
        shape = self._reader.shape(name)
        return self._alignment.fold.shape(self._layouts[name], shape) if name in self._layouts else shape

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor: alignment does not change it."""
        return self._reader.dtype(name)

    def tied(self) -> dict[str, str]:
        """Ties of the checkpoint whose tensors are moved alike."""
        tied = self._reader.tied()
        return ties_by({name: (tied.get(name, name), id(self._layouts.get(name))) for name in self.names()})

    def aliases(self) -> dict[str, str]:
        """Aliases of the checkpoint."""
        return self._reader.aliases()

    def read(self, name: str) -> Tensor:
        """The tensor in the reference's unit order: an exact gather; with zip, float32 sums, to be rounded once."""
        tensor = self._reader.read(name)
        if name not in self._layouts:
            return tensor
        layout, alignment = self._layouts[name], self._alignment
        moved = permute_tensor(tensor, layout, alignment.symmetry, alignment.permutations[self._model])
        return alignment.fold(moved, layout, self._model) if alignment.zips else moved

    def read_slice(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the tensor in the reference's unit order, gathered alone where that can be."""
        if name not in self._layouts:
            return self._reader.read_slice(name, start, stop)
        if not self.reads_parts(name):
            return self.read(name)[start:stop]
        symmetry, permutations = self._alignment.symmetry, self._alignment.permutations[self._model]
        return permute_rows(self._reader.read(name), self._layouts[name], symmetry, permutations, slice(start, stop))

    def read_flat(self, name: str, start: int, stop: int) -> Tensor:
        """Entries [start, stop), flat. Rows longer than that are gathered once, and kept until others are asked for."""
        width = prod(self.shape(name)[1:])
        if width <= stop - start or not self.reads_parts(name):
            return super().read_flat(name, start, stop)
        first, last = start // width, -(-stop // width)
        if self._rows[0] != (name, first, last):
            self._rows = ((name, first, last), self.read_slice(name, first, last).reshape(-1))
        return self._rows[1][start - first * width : stop - first * width]

    def reads_parts(self, name: str) -> bool:
        """Whether rows can be gathered alone: not where units are zipped or the order of rows depends on the column."""
        if name not in self._layouts:
            return self._reader.reads_parts(name)
        layout, alignment = self._layouts[name], self._alignment
        return not alignment.zips and bool(layout.dims) and not outer_dims(layout, alignment.symmetry, 0)


def apply_alignment(state_dict: Mapping[str, Tensor], alignment: Alignment, model_index: int) -> dict[str, Tensor]:
    """The state dict of model `model_index` in the unit order of model 0: exact gathers, same dtypes.

    With zip it is the model's part of the merged model, times the number of models: the mean of all is the merge.
    """
    view = AlignedReader(open_checkpoint(state_dict), alignment, model_index)
    return {name: tensor.to(view.dtype(name)) for name, tensor in view.items()}
