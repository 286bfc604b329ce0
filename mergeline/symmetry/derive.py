"""Derive the symmetry of any module: trace it, interpret the trace on labels, name what was found, prove it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mergeline.symmetry.extract import Extraction, NotUniformError, extract
from mergeline.symmetry.interpret import Interpretation, interpret, storage_key
from mergeline.symmetry.labels import AbstractTensor
from mergeline.symmetry.layout import Fixed, Layout, rename
from mergeline.symmetry.naming import family_names
from mergeline.symmetry.notes import explain, limits
from mergeline.symmetry.symmetry import ELEMENTWISE, ParameterLayout, Site, Symmetry
from mergeline.symmetry.trace import Inputs, tensors_of, trace
from mergeline.symmetry.units import Family, Span, joined_spans
from mergeline.symmetry.verify import proved


def derive_symmetry(module: nn.Module, example_inputs: Inputs, *, verify: bool = True) -> Symmetry:
    """Which units of a module may change places without changing what it computes.

    example_inputs: a tensor, a tuple of positional arguments, or a mapping of named ones, as for a call; modules on
    the meta device are derived without numbers (and so without proof). Operations without a rule leave their operands
    fixed and are listed in the notes. verify: permute a random copy of the module and compare the outputs.
    Raises InputError where the module cannot be traced, or where the proof fails.
    """
    state = tensors_of(module)
    device = next((tensor.device for tensor in state.values()), torch.device("cpu"))
    example_inputs = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, example_inputs)
    traced, tied = trace(module, example_inputs), _tied_names(state)
    symmetry = _assemble(interpret(traced), tied)
    unread = [
        name for name, others in tied.items() if state[name].numel() > 1 and traced.read.isdisjoint([name, *others])
    ]
    notes = {**symmetry.notes, **limits(traced, unread)}
    if device.type == "meta":
        return replace(symmetry, notes={**notes, "verified": "no: the module is on the meta device"})
    if not verify:
        return replace(symmetry, notes={**notes, "verified": "no: not asked for"})
    return proved(replace(symmetry, notes=notes), module, example_inputs)


def _assemble(found: Interpretation, tied: Mapping[str, tuple[str, ...]]) -> Symmetry:
    """Families under readable names, the tensors that carry them, sites and notes."""
    tensors = {
        first: found.parameters[name].labelled()
        for first, others in tied.items()
        for name in [first, *others]
        if name in found.parameters and found.parameters[name].tensor is not None
    }
    extraction, layouts = extract(found.domains, tensors)
    names = family_names(extraction, found)
    families = {
        names[number]: Family(names[number], family.size, tuple(names.get(outer, outer) for outer in family.over))
        for number, family in extraction.families.items()
    }
    parameters = {
        name: ParameterLayout(tuple(rename(dim, names) for dim in dims), _roles(found, tensors[name], dims), tied[name])
        for name, dims in layouts.items()
        if any(not isinstance(dim, Fixed) for dim in dims)
    }
    symmetry = Symmetry(families, parameters, notes=explain(found, tensors, layouts))
    return replace(symmetry, sites=_sites(found, extraction, names, symmetry))


def _tied_names(state: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """First name of each tensor of the state dict -> its other names."""
    names: dict[object, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(storage_key(tensor) if tensor.numel() else name, []).append(name)
    return {first: tuple(tied) for first, *tied in names.values()}


def _counts(layout: Layout) -> bool:
    """Whether an axis carries units, or counts the units of others."""
    return not isinstance(layout, Fixed) or layout.counted


def _roles(found: Interpretation, x: AbstractTensor, dims: Sequence[Layout]) -> tuple[str, ...]:
    """in and out as contractions told; units of no contraction are scaled or shifted place by place."""
    roles = []
    for axis, layout in enumerate(dims):
        told = {role for source in x.sources[axis] for role in found.record.roles.get(source, ())}
        roles.append("" if isinstance(layout, Fixed) else "/".join(sorted(told)) or ELEMENTWISE)
    return tuple(roles)


def _sites(
    found: Interpretation, extraction: Extraction, names: Mapping[str, str], symmetry: Symmetry
) -> tuple[Site, ...]:
    """Every place where activations show the units of a group while an operation reads or makes them.

    What is read after pooling is observed before it.
    """
    groups = {group.structure: name for name, group in symmetry.groups.items()}

    @cache
    def shown(value: str) -> tuple[dict[int, Layout], list[Span]]:
        """The axes of a value that carry units, and the groups in them."""
        if value not in found.values:  # one of several outputs
            return {}, []
        try:
            layouts = extraction.layouts(found.values[value], value)
        except NotUniformError:
            return {}, []
        dims = {dim: rename(layout, names) for dim, layout in enumerate(layouts) if _counts(layout)}
        return dims, [span for span in joined_spans(dims, symmetry.families, symmetry.active) if span.path in groups]

    sites: dict[Site, None] = {}
    for sighting in found.record.sightings:
        paths = {span.path for span in shown(sighting.value)[1] if span.dim in sighting.axes}
        value = found.record.pooled.get(sighting.value, sighting.value) if sighting.kind == "use" else sighting.value
        dims, spans = shown(value)
        for path in dict.fromkeys(span.path for span in spans if span.path in paths):
            sites[Site(groups[path], value, tuple(dims.items()), sighting.kind, sighting.consumer)] = None
    return tuple(sites)
