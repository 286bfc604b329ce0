"""Apply permutations of families to tensors: exact gathers, never a matrix product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mergeline.errors import InputError
from mergeline.symmetry.layout import (
    Blocks,
    Fixed,
    Layout,
    Segments,
    Units,
    extent,
    factors,
    families_of,
    is_counted,
    names_in,
    width,
)
from mergeline.symmetry.symmetry import ParameterLayout, Symmetry

Permutations = Mapping[str, Tensor]


def gather_index(
    layout: Layout,
    symmetry: Symmetry,
    permutations: Permutations,
    enclosing: Sequence[str] = (),
    widths: Mapping[str, int] | None = None,
) -> Tensor:
    """Old position of each new position of an axis, int64 [sizes of `enclosing`..., width].

    Position j of outer unit i in the new order takes position `inner[i][j]` of outer unit `outer[i]` in the old one:
    an inner permutation is indexed by the new outer unit. `permutations` may be other maps of units to units; `widths`
    then says how many there are on the other side (as many, if nothing is said).
    """
    sizes, widths = symmetry.sizes, widths or symmetry.sizes
    lead = [extent(name, sizes) for name in enclosing]
    match layout:
        case Fixed():
            return torch.arange(layout.size).expand(*lead, layout.size)
        case Units(family):
            return _family_index(family, symmetry, permutations, enclosing)
        case Blocks(family, inner):
            outer = _family_index(family, symmetry, permutations, enclosing)
            within = gather_index(inner, symmetry, permutations, (*enclosing, family), widths)
            return (outer[..., None] * width(inner, widths) + within).flatten(-2)
        case Segments(parts):
            pieces, start = [], 0
            for part in parts:
                pieces.append(gather_index(part, symmetry, permutations, enclosing, widths) + start)
                start += width(part, widths)
            return torch.cat(pieces, dim=-1)


def group_index(
    path: Sequence[str], symmetry: Symmetry, permutations: Permutations, widths: Mapping[str, int] | None = None
) -> Tensor:
    """Old unit at each new place of a group, int64 [units], for units along a path of families, outer to inner."""
    layout: Layout = Units(path[-1])
    for family in reversed(path[:-1]):
        layout = Blocks(family, layout)
    return gather_index(layout, symmetry, permutations, (), widths)


def _family_index(family: str, symmetry: Symmetry, permutations: Permutations, enclosing: Sequence[str]) -> Tensor:
    """Permutation of a family with its `over` axes moved to their places among `enclosing` (innermost wins)."""
    lead = [extent(name, symmetry.sizes) for name in enclosing]
    if is_counted(family):
        size = extent(family, symmetry.sizes)
        return torch.arange(size).expand(*lead, size)
    over = symmetry.families[family].over
    for outer in over:
        if outer not in enclosing:
            raise InputError(f"symmetry: units lie over '{outer}', which no axis of the tensor counts")
    places = [max(i for i, name in enumerate(enclosing) if name == outer) for outer in over]
    order = sorted(range(len(over)), key=lambda i: places[i])
    index = permutations[family].permute(*order, len(over))
    shape = [n if i in places else 1 for i, n in enumerate(lead)]
    return index.reshape(*shape, symmetry.sizes[family]).expand(*lead, symmetry.sizes[family])


def permute_tensor(
    tensor: Tensor,
    layout: ParameterLayout,
    symmetry: Symmetry,
    permutations: Permutations,
    keep: int | None = None,
) -> Tensor:
    """The tensor in the new unit order, but for one axis (`keep`) if wanted."""
    for dim, index in axis_indices(layout, symmetry, permutations):
        if dim != keep:
            tensor = _gather(tensor, dim, index)
    return tensor


def permute_rows(
    tensor: Tensor, layout: ParameterLayout, symmetry: Symmetry, permutations: Permutations, rows: slice
) -> Tensor:
    """Some rows of the tensor in the new unit order, gathered alone: what `outer_dims` of axis 0 must be empty for."""
    if isinstance(layout.dims[0], Fixed):
        tensor = tensor[rows]
    for dim, index in axis_indices(layout, symmetry, permutations):
        by_row = dim == 0 or (index.ndim > 1 and len(index) > 1)
        tensor = _gather(tensor, dim, index[rows] if by_row else index)
    return tensor


def _gather(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    if index.ndim > 1:
        return torch.take_along_dim(tensor, index.to(tensor.device), dim=dim)
    if len(index) == tensor.shape[dim] and torch.equal(index, torch.arange(len(index))):
        return tensor
    return tensor.index_select(dim, index.to(tensor.device))


def axis_indices(
    layout: ParameterLayout, symmetry: Symmetry, permutations: Permutations, widths: Mapping[str, int] | None = None
) -> Iterator[tuple[int, Tensor]]:
    """The axes of a tensor that carry units and the index of each (`gather_index`), in the order to apply them.

    Where units lie over those of other axes (grouped convolutions, experts), the index depends on the (already
    reordered) position along these: it then has the dimensions of the tensor, of length 1 where it does not depend.
    """
    moving = [dim for dim, axis in enumerate(layout.dims) if not isinstance(axis, Fixed)]
    outer = {dim: outer_dims(layout, symmetry, dim) for dim in moving}
    for dim in sorted(moving, key=lambda dim: len(outer[dim])):
        enclosing = [str(part) for j in outer[dim] for part in factors(layout.dims[j]) or ()]
        index = gather_index(layout.dims[dim], symmetry, permutations, enclosing, widths)
        yield dim, _over_axes(index, layout, symmetry, [*outer[dim], dim]) if outer[dim] else index


def outer_dims(layout: ParameterLayout, symmetry: Symmetry, dim: int) -> list[int]:
    """Other axes of the tensor whose units choose the permutation of this axis."""
    axis = layout.dims[dim]
    needed = {outer for family in families_of(axis) for outer in symmetry.families[family].over} - set(names_in(axis))
    return [
        j for j, axis in enumerate(layout.dims) if j != dim and needed & {str(part) for part in factors(axis) or ()}
    ]


def _over_axes(index: Tensor, layout: ParameterLayout, symmetry: Symmetry, places: Sequence[int]) -> Tensor:
    """The index with its dimensions at these axes of the tensor and length 1 elsewhere."""
    widths = [width(axis, symmetry.sizes) for axis in layout.dims]
    index = index.reshape([widths[j] for j in places]).permute(*sorted(range(len(places)), key=lambda i: places[i]))
    return index.reshape([length if j in places else 1 for j, length in enumerate(widths)])
