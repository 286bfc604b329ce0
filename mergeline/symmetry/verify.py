"""Prove a symmetry numerically: permute at random and see that the outputs stay."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn

from mergeline.errors import InputError
from mergeline.symmetry.notes import listed
from mergeline.symmetry.probe import Probe
from mergeline.symmetry.symmetry import Symmetry
from mergeline.symmetry.trace import Inputs

TOLERANCE = 1e-4
"""Relative output change that rounding may cause where a module computes in float32 whatever comes in.

In float64 rounding stays below 1e-9, and wrong entries that have any effect were never seen to cause less than 1e-3.
"""

FEW = 5000
"""Families with fewer derangements than this may move alike by chance, which hides faults: they also move alone."""


def output_change(
    symmetry: Symmetry,
    module: nn.Module,
    example_inputs: Inputs,
    *,
    seed: int = 0,
    only: Sequence[str] | None = None,
) -> float:
    """Largest relative change of any output when all families (or those in `only`) are permuted at random.

    The change of an element counts relative to how much the output's elements vary with the parameters. The module
    itself is left as it is. Raises InputError where it does not have the symmetry's tensors or gives no numbers.
    """
    probe = Probe(symmetry, module, example_inputs, seed)
    if only is not None:
        return probe.change(only)
    return max(probe.change(families) for families in _trials(symmetry, probe))


def require_sound(symmetry: Symmetry, module: nn.Module, example_inputs: Inputs, seed: int = 0) -> list[str]:
    """Raise InputError, naming the families at fault, unless permuting leaves the outputs as they are.

    Returns the families about which that says little, as the outputs hardly respond to some of their weights.
    """
    probe = Probe(symmetry, module, example_inputs, seed, listen=True)
    if all(probe.change(families) <= TOLERANCE for families in _trials(symmetry, probe)):
        return probe.unheard()
    if probe.change([]) > TOLERANCE:
        raise InputError(f"{probe.name}: its outputs differ from run to run, so nothing can be verified")
    changes = {family: probe.change([family]) for family in symmetry.families}
    listing = "; ".join(
        f"'{family}' changes the output by {change:.1e} ({_whereabouts(symmetry, family)})"
        for family, change in changes.items()
        if change > TOLERANCE
    )
    raise InputError(f"{probe.name}: not a symmetry of the model: {listing or 'all together'}{probe.doubt}")


def proved(symmetry: Symmetry, module: nn.Module, example_inputs: Inputs) -> Symmetry:
    """The symmetry with a note that it was verified, or how far. Raises InputError as `require_sound` does."""
    unheard = require_sound(symmetry, module, example_inputs)
    verified = "yes: permuting a random copy leaves the outputs as they are"
    if unheard:
        verified = (
            "in part: permuting a random copy leaves the outputs as they are, but they hardly respond to some weights "
            f"of {listed(unheard)}, so faults there would not show"
        )
    return replace(symmetry, notes={**symmetry.notes, "verified": verified})


def _trials(symmetry: Symmetry, probe: Probe) -> Iterator[list[str]]:
    """Families to permute together: all of them, then one by one where that tells more, or costs nothing."""
    yield list(symmetry.families)
    for name, family in symmetry.families.items():
        derangements = symmetry.copies(name) * math.lgamma(family.size)  # a logarithm, and a lower bound
        if probe.is_small or derangements < math.log(FEW):
            yield [name]


def _whereabouts(symmetry: Symmetry, family: str) -> str:
    """Tensors and operations of the trace that deal with the units of a family."""
    groups = [group for group in symmetry.groups.values() if family in group.structure]
    tensors = sorted({axis.param for group in groups for axis in group.axes})
    names = {group.name for group in groups}
    nodes = list(dict.fromkeys(site.at for site in symmetry.sites if site.group in names))
    return f"tensors: {', '.join(tensors)}" + (f"; operations: {', '.join(nodes)}" if nodes else "")
