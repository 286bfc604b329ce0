"""What the authors of MuDSC do otherwise: attention heads of queries and keys are ordered apart from those of values.

Such an alignment does not keep the function of a model. It serves to compare with their results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import nn

from mergeline.symmetry.layout import Blocks, Fixed, Layout, Segments, Units, families_of
from mergeline.symmetry.permute import outer_dims
from mergeline.symmetry.symmetry import Symmetry

Path = tuple[str, ...]


def untied(symmetry: Symmetry) -> Symmetry:
    """The symmetry with an outer family of its own for every group of inner units in outer ones, such as heads.

    Groups keep their names. What the authors have no specification for stays as it is: groups whose units alternate
    inside an outer unit, lie over several axes (grouped convolutions) or over three families (grouped queries).
    """
    layouts = [dim for parameter in symmetry.parameters.values() for dim in parameter.dims]
    alternating = {path for layout in layouts for path in _alternating(layout)}
    used = [family for group in symmetry.groups.values() for family in set(group.structure)]
    outer: dict[Path, dict[str, str]] = {}
    for group in symmetry.groups.values():
        path = group.structure
        alone = used.count(path[-1]) == 1 and not any(_has_linked_axes(symmetry, axis.param) for axis in group.axes)
        if len(path) == 2 and alone and path not in alternating:
            outer[path] = {name: f"{name}.{path[-1]}" for name in path[:-1] if used.count(name) > 1}
    return _with_families(symmetry, outer)


def whole_families(module: nn.Module, symmetry: Symmetry) -> frozenset[str]:
    """Families of units that a GroupNorm normalises one by one: groups of one, which are not merged with each other."""
    families: set[str] = set()
    for name, child in module.named_modules():
        layout = symmetry.parameters.get(f"{name}.weight")
        if isinstance(child, nn.GroupNorm) and child.num_groups == child.num_channels and layout is not None:
            families.update(families_of(layout.dims[0]))
    return frozenset(families)


def _has_linked_axes(symmetry: Symmetry, name: str) -> bool:
    layout = symmetry.parameters[name]
    return any(outer_dims(layout, symmetry, dim) for dim in range(len(layout.dims)))


def _with_families(symmetry: Symmetry, outer: Mapping[Path, Mapping[str, str]]) -> Symmetry:
    """The symmetry with other names for the outer families along some paths; sites would not know which to show."""
    families = dict(symmetry.families)
    for path, names in outer.items():
        families.update({new: replace(families[old], name=new) for old, new in names.items()})
        inner = families[path[-1]]
        families[path[-1]] = replace(inner, over=tuple(names.get(name, name) for name in inner.over))
    parameters = {
        name: replace(layout, dims=tuple(_renamed(dim, outer) for dim in layout.dims))
        for name, layout in symmetry.parameters.items()
    }
    mentioned = {family for layout in parameters.values() for dim in layout.dims for family in families_of(dim)}
    return Symmetry({name: x for name, x in families.items() if name in mentioned}, parameters)


def _leaves(layout: Layout, path: Path = ()) -> Iterator[Path]:
    """The paths of families to the innermost units of a layout."""
    match layout:
        case Fixed():
            yield path
        case Units(family):
            yield (*path, family)
        case Blocks(family, inner):
            yield from _leaves(inner, (*path, family))
        case Segments(parts):
            for part in parts:
                yield from _leaves(part, path)


def _alternating(layout: Layout, path: Path = ()) -> Iterator[Path]:
    """The paths that share an outer unit at one place of an axis."""
    match layout:
        case Blocks(family, inner):
            leaves = set(_leaves(inner, (*path, family)))
            yield from leaves if len(leaves) > 1 else ()
        case Segments(parts):
            for part in parts:
                yield from _alternating(part, path)


def _renamed(layout: Layout, outer: Mapping[Path, Mapping[str, str]], path: Path = ()) -> Layout:
    match layout:
        case Blocks(family, inner):
            leaf = next(_leaves(inner, (*path, family)))
            renamed = _renamed(inner, outer, (*path, family))
            return Blocks(outer.get(leaf, {}).get(family, family), renamed)
        case Segments(parts):
            return Segments(tuple(_renamed(part, outer, path) for part in parts))
        case _:
            return layout
