"""Where tensors hold units: the positions of each unit along one axis or spread over several."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from mergeline.errors import InputError
from mergeline.symmetry.layout import Layout, extent, factors, families_of, terms, width


@dataclass(frozen=True)
class Family:
    """`size` units under one permutation; one permutation for each combination of units of `over`.

    `over` names other families, or eight fixed positions of another axis as `#8`.
    """

    name: str
    size: int
    over: tuple[str, ...] = ()


@dataclass(frozen=True)
class Span:
    """Where a tensor holds the units along one path of families, outer to inner.

    places[k] = (dim, stride): the next unit of path[k] lies `stride` positions further along axis `dim`. The first
    unit starts at `start` along the axis of the last place, and is `width` positions wide there.
    """

    path: tuple[str, ...]
    places: tuple[tuple[int, int], ...]
    start: int
    width: int

    @property
    def dim(self) -> int:
        """The axis of the innermost units."""
        return self.places[-1][0]


def spans(dims: Mapping[int, Layout], families: Mapping[str, Family]) -> Iterator[Span]:
    """All units that a tensor with these axis layouts holds, from the first axis to the last.

    Where units of one axis lie over units of another (input channels of grouped convolutions), both are joined.
    """
    sizes = {name: family.size for name, family in families.items()}
    for dim, layout in dims.items():
        for term in terms(layout, sizes):
            path, places = list(term.path), [(dim, stride) for stride in term.strides]
            over = [outer for name in term.path if name in families for outer in families[name].over]
            missing = [outer for outer in over if outer not in term.path]
            for place, outer in enumerate(dict.fromkeys(missing)):
                path.insert(place, outer)
                places.insert(place, _place(outer, dims, dim, sizes))
            yield Span(tuple(path), tuple(places), term.start, term.width)


def joined_spans(dims: Mapping[int, Layout], families: Mapping[str, Family], units: Set[str]) -> Iterator[Span]:
    """All units that activations show, each with the units of all other axes joined to it as outer units.

    Rows of activations are compared across models, so an axis on which units may move cannot count rows: in
    [batch, heads, tokens, inner] the units are heads * inner. Left out where another axis holds several kinds of units.
    units: the families whose units are told apart by what they do; others (register tokens) may count rows.
    """
    sizes = {name: family.size for name, family in families.items()}
    for span in spans(dims, families):
        outer: list[tuple[str, tuple[int, int]]] = []
        for dim, layout in dims.items():
            parts = factors(layout)
            if dim == span.dim or (parts is None and not units & set(families_of(layout))):
                continue
            if parts is None:
                break
            outer += [
                (str(part), (dim, math.prod(width(rest, sizes) for rest in parts[k + 1 :])))
                for k, part in enumerate(parts)
                if str(part) in units or str(part) in span.path
            ]
        else:
            own = [k for k, place in enumerate(span.places) if place[0] == span.dim]
            path = (*[name for name, _ in outer], *[span.path[k] for k in own])
            places = (*[place for _, place in outer], *[span.places[k] for k in own])
            yield Span(path, places, span.start, span.width)


def _place(outer: str, dims: Mapping[int, Layout], dim: int, sizes: Mapping[str, int]) -> tuple[int, int]:
    """The axis, other than `dim`, that counts the units of a family, and its stride there."""
    for j, layout in dims.items():
        parts = factors(layout) or []
        for k, part in enumerate(parts):
            if j != dim and outer == str(part):
                return j, math.prod(width(rest, sizes) for rest in parts[k + 1 :])
    raise InputError(f"symmetry: units lie over '{outer}', which no axis of the tensor counts")


def units_first(tensor: Tensor, span: Span, sizes: Mapping[str, int]) -> Tensor:
    """All values of each unit as one row, [units, values per unit], units in order from outer to inner."""
    parts, units, rest = _by_units(tensor, span, sizes)
    return parts.permute(*units, *rest).reshape(math.prod(parts.shape[axis] for axis in units), -1)


def units_apart(tensor: Tensor, span: Span, sizes: Mapping[str, int]) -> Tensor:
    """The tensor with a dimension for each family of the path, then the others: a view of it where that is possible."""
    parts, units, rest = _by_units(tensor, span, sizes)
    return parts.permute(*units, *rest)


def _by_units(tensor: Tensor, span: Span, sizes: Mapping[str, int]) -> tuple[Tensor, list[int], list[int]]:
    """The tensor with an axis for each family of the path (listed first) and other axes (listed second)."""
    counts = [extent(name, sizes) for name in span.path]
    positions = span.start + torch.arange(span.width, device=tensor.device)
    for (dim, stride), count in reversed(list(zip(span.places, counts, strict=True))):
        if dim == span.dim:
            positions = (torch.arange(count, device=tensor.device)[:, None] * stride + positions).flatten()
    if len(positions) < tensor.shape[span.dim]:
        tensor = tensor.index_select(span.dim, positions)
    shape: list[int] = []
    axis_of: dict[int, int] = {}  # place in the path -> axis of the reshaped tensor
    for dim, left in enumerate(tensor.shape):
        here = [k for k, place in enumerate(span.places) if place[0] == dim]
        for k in here:
            inner = math.prod(counts[j] for j in here if j > k) * span.width if dim == span.dim else span.places[k][1]
            axis_of[k] = len(shape) + 1
            shape += [left // (counts[k] * inner), counts[k]]
            left = inner
        shape.append(left)
    units = [axis_of[k] for k in range(len(counts))]
    return tensor.reshape(shape), units, [axis for axis in range(len(shape)) if axis not in units]
