"""Derive the symmetry of any module: trace it, interpret the trace on labels, name what was found, prove it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mergeline.symmetry.extract import Extraction, NotUniformError, extract
from mergeline.symmetry.interpret import Interpretation, interpret, storage_key
from mergeline.symmetry.labels import AbstractTensor
from mergeline.symmetry.layout import Fixed, Layout, rename
from mergeline.symmetry.naming import family_names
from mergeline.symmetry.notes import explain
from mergeline.symmetry.symmetry import ELEMENTWISE, ParameterLayout, Site, Symmetry
from mergeline.symmetry.trace import Inputs, trace
from mergeline.symmetry.units import Family, Span, joined_spans
from mergeline.symmetry.verify import require_sound


def derive_symmetry(module: nn.Module, example_inputs: Inputs, *, verify: bool = True) -> Symmetry:
    """Which units of a module may change places without changing what it computes.

    example_inputs: a tensor, a tuple of positional arguments, or a mapping of named ones, as for a call; modules on
    the meta device are derived without numbers (and so without proof). Operations without a rule leave their operands
    fixed and are listed in the notes. verify: permute a random copy of the module and compare the outputs.
    Raises InputError where the module cannot be traced, or where the proof fails.
    """
    example_inputs = _on_device_of(module, example_inputs)
    traced = trace(module, example_inputs)
    found = interpret(traced)
    names = _tied_names(module)
    tensors = {
        first: found.parameters[name].labelled()
        for first, tied in names.items()
        for name in [first, *tied]
        if name in found.parameters and found.parameters[name].tensor is not None
    }
    extraction, layouts = extract(found.domains, tensors)
    readable = family_names(extraction, found)
    families = {
        readable[name]: Family(readable[name], family.size, tuple(readable.get(outer, outer) for outer in family.over))
        for name, family in extraction.families.items()
    }
    parameters = {
        name: ParameterLayout(
            tuple(rename(dim, readable) for dim in dims), _roles(found, tensors[name], dims), names[name]
        )
        for name, dims in layouts.items()
        if any(not isinstance(dim, Fixed) for dim in dims)
    }
    notes = explain(found, tensors, layouts)
    symmetry = Symmetry(families, parameters, notes=notes)
    symmetry = Symmetry(families, parameters, _sites(found, extraction, readable, symmetry), notes)
    if any(tensor.device.type == "meta" for tensor in module.state_dict().values()):
        notes["verified"] = "no: the module is on the meta device"
    elif verify:
        require_sound(symmetry, module, example_inputs)
        notes["verified"] = "yes: permuting a random copy leaves the outputs as they are"
    else:
        notes["verified"] = "no: not asked for"
    return symmetry


def _counts(layout: Layout) -> bool:
    """Whether an axis carries units, or counts the units of others."""
    return not isinstance(layout, Fixed) or layout.counted


def _on_device_of(module: nn.Module, example_inputs: Inputs) -> Inputs:
    device = next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, example_inputs)


def _tied_names(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """First name of each tensor of the state dict -> its other names."""
    names: dict[object, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        names.setdefault(storage_key(tensor) if tensor.numel() else name, []).append(name)
    return {first: tuple(tied) for first, *tied in names.values()}


def _roles(found: Interpretation, x: AbstractTensor, dims: Sequence[Layout]) -> tuple[str, ...]:
    """in and out as contractions told; units of no contraction are scaled or shifted place by place."""
    roles = []
    for axis, layout in enumerate(dims):
        told = {role for source in x.sources[axis] for role in found.record.roles.get(source, ())}
        roles.append("" if isinstance(layout, Fixed) else "/".join(sorted(told)) or ELEMENTWISE)
    return tuple(roles)


def _sites(
    found: Interpretation, extraction: Extraction, readable: Mapping[str, str], symmetry: Symmetry
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
        dims = {dim: rename(layout, readable) for dim, layout in enumerate(layouts) if _counts(layout)}
        return dims, [span for span in joined_spans(dims, symmetry.families, symmetry.active) if span.path in groups]

    sites: dict[Site, None] = {}
    for sighting in found.record.sightings:
        paths = {span.path for span in shown(sighting.value)[1] if span.dim in sighting.axes}
        value = found.record.pooled.get(sighting.value, sighting.value) if sighting.kind == "use" else sighting.value
        dims, spans = shown(value)
        for path in dict.fromkeys(span.path for span in spans if span.path in paths):
            sites[Site(groups[path], value, tuple(dims.items()), sighting.kind, sighting.consumer)] = None
    return tuple(sites)
