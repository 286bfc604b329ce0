"""What a layer of the merged model should give: the mean over the task models, in the merged model's units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mergeline.alignment.alignment import Alignment
from mergeline.errors import InputError
from mergeline.symmetry.layout import Layout, families_of
from mergeline.symmetry.permute import Permutations, gather_index, permute_tensor
from mergeline.symmetry.symmetry import ParameterLayout


class UnitMean:
    """The mean over all units of all models that became one merged unit, for the channels of one layer.

    places: for each model, the merged channel of each of its channels; none: all models have the same order.
    """

    def __init__(self, places: Sequence[Tensor] | None, width: int) -> None:
        self._places = places
        self.width = width
        if places is not None:
            counts = sum(torch.bincount(row, minlength=width) for row in places)
            assert isinstance(counts, Tensor)
            if int(counts.min()) == 0:
                raise InputError("calibration: the alignment leaves a merged unit without any unit of a task model")
            self._share = 1 / counts.double()

    def __call__(self, values: Sequence[Tensor], channel: int) -> Tensor:
        """The values of all models, channels on the given axis -> float32 values of the merged channels."""
        if self._places is None:
            return torch.stack([value.float() for value in values]).mean(dim=0)
        axis = channel % values[0].ndim
        shape = [-1 if dim == axis else 1 for dim in range(values[0].ndim)]
        total = values[0].new_zeros([self.width if i == axis else n for i, n in enumerate(values[0].shape)])
        for value, places in zip(values, self._places, strict=True):
            total.index_add_(axis, places.to(value.device), value.float())
        return total * self._share.float().to(total.device).reshape(shape)


def in_order(state: Mapping[str, Tensor], alignment: Alignment | None, model: int) -> dict[str, Tensor]:
    """The tensors of a task model in the merged model's unit order, as far as that is one: units to zip follow.

    The model computes the same, and on every axis of its values, not that of a layer's channels alone, units stand
    where those of the other models do.
    """
    return dict(state) if alignment is None else moved(state, alignment, alignment.permutations[model])


def moved(state: Mapping[str, Tensor], alignment: Alignment, permutations: Permutations) -> dict[str, Tensor]:
    """The tensors of a model after permutations of the alignment's units."""
    layouts = {name: layout_of(alignment, name) for name in state}
    return {
        name: permute_tensor(x, layout, alignment.symmetry, permutations) if (layout := layouts[name]) else x
        for name, x in state.items()
    }


def unit_mean(alignment: Alignment | None, tensor: str, axis: int, width: int, part: slice = slice(None)) -> UnitMean:
    """How the channels that an axis of a tensor (or a part of it) writes come together, of models that are `in_order`;
    width: how many the merged model has.

    Raises InputError where the order of the channels depends on another axis of the tensor, or crosses the part.
    """
    layout = layout_of(alignment, tensor)
    if alignment is None or layout is None or not zips_some(alignment, layout.dims[axis]):
        return UnitMean(None, width)
    fold = alignment.fold
    every = (gather_index(layout.dims[axis], alignment.symmetry, maps, (), fold.sizes) for maps in fold.maps)
    return UnitMean([within(index, part) for index in every], width)


def within(index: Tensor, part: slice) -> Tensor:
    """Places of the rows of a part, counted from its first. Raises InputError where they lie outside of it."""
    if part.start is None:
        return index
    places = index[part] - part.start
    if int(places.min()) < 0 or int(places.max()) >= part.stop - part.start:
        raise InputError("the alignment moves its units between the parts that the tensor is split into")
    return places


def zips_some(alignment: Alignment, axis: Layout) -> bool:
    """Whether an axis of a tensor holds units that are zipped."""
    return not alignment.zips.keys().isdisjoint(families_of(axis))


def layout_of(alignment: Alignment | None, tensor: str) -> ParameterLayout | None:
    """Which units the axes of a tensor hold; None where it holds none."""
    if alignment is None:
        return None
    parameters = alignment.symmetry.parameters
    return parameters.get(tensor) or next((x for x in parameters.values() if tensor in x.tied), None)
