"""What a reader should know beside the families: why axes are fixed, and which operations had no rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mergeline.symmetry.domains import Domains
from mergeline.symmetry.interpret import Interpretation
from mergeline.symmetry.labels import AbstractTensor
from mergeline.symmetry.layout import Layout
from mergeline.symmetry.rules.convolution import KERNEL
from mergeline.symmetry.trace import Trace

SHOWN = 6
"""How many places a note lists before it counts the rest."""


def explain(
    found: Interpretation, tensors: Mapping[str, AbstractTensor], layouts: Mapping[str, Sequence[Layout]]
) -> dict[str, str]:
    """Notes by subject: `fixed: REASON` -> the axes, `no rule: OPERATION` -> where, and how to add a rule."""
    notes = {}
    for operation, unknown in found.unknown.items():
        key = f"no rule: {operation}"
        notes[key] = (
            f"{unknown.reason} at {listed(unknown.nodes)}; what it reads stays fixed. "
            f"To let units pass, write a function with @rule({operation!r}) beside those in mergeline.symmetry.rules."
        )
    fixed: dict[str, list[str]] = {}
    for name, x in tensors.items():
        for axis, layout in enumerate(layouts[name]):
            for reason in _reasons(found.domains, x, axis) if "_" in str(layout) else ():
                fixed.setdefault(reason, []).append(f"{name}[{axis}]")
    notes.update({f"fixed: {reason}": listed(axes) for reason, axes in fixed.items()})
    return notes


def limits(trace: Trace, unread: Sequence[str]) -> dict[str, str]:
    """Notes on what the example inputs do not show: tensors of the state dict that nothing reads, other batch sizes."""
    notes = {}
    if unread:
        notes["not traced"] = (
            f"{listed(unread)}: nothing reads them for these inputs, so they stay as they are while other units move; "
            "where the model uses them after all, derive with inputs that do"
        )
    if trace.batch is not None:
        notes["batch"] = f"traced for inputs of length {trace.batch} along the first axis; code may do else for others"
    return notes


def _reasons(domains: Domains, x: AbstractTensor, axis: int) -> list[str]:
    """Why units of an axis are fixed, as far as they are; positions of kernels need no explanation."""
    reasons: dict[str, None] = {}
    for level in x.labels[axis] or ():
        todo = np.unique(level.domain).tolist()
        while todo:
            domain = domains.find(todo.pop())
            reason = domains.reason(domain) if domain >= 0 else None
            if reason is not None:
                reasons[str(reason)] = None
            elif domain >= 0 and (refinement := domains.refinement(domain)) is not None:
                todo += refinement.parts()
    return [reason for reason in reasons if not reason.startswith(KERNEL)]


def listed(items: Sequence[str]) -> str:
    """Items in a row; the first few of many."""
    rest = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
