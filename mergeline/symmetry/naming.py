"""Names for families: after the first tensor that makes the units, with a word for units inside or around others."""

from __future__ import annotations

import re
from collections import Counter

from mergeline.symmetry.extract import Extraction, FoundFamily
from mergeline.symmetry.interpret import Interpretation
from mergeline.symmetry.symmetry import PRODUCER


def family_names(extraction: Extraction, found: Interpretation) -> dict[str, str]:
    """Number of each family -> its name: `layer1.0.conv1`, `blocks.0.attn.qkv.heads`, `blocks.0.attn.qkv.v`."""
    nested = {outer for family in extraction.families.values() for outer in family.over}
    names: dict[str, str] = {}
    taken: Counter[str] = Counter()
    for number, family in extraction.families.items():
        name = _tensor(family, found)
        if number in nested or family.over or any(outer for _, outer in family.axes):
            default = "blocks" if number in nested or not family.over else "inner"
            name = f"{name}.{_hint(family, found) or default}"
        taken[name] += 1
        names[number] = name if taken[name] == 1 else f"{name}~{taken[name]}"
    return names


def _tensor(family: FoundFamily, found: Interpretation) -> str:
    """The first tensor that makes the units, or else the first that has them, without 'weight' and 'bias'."""
    axes = [axis for axis, _ in family.axes]
    producing = [axis for axis in axes if PRODUCER in found.record.roles.get(axis, ())]
    name = (producing or axes)[0][0]
    for ending in (".weight", "_weight", ".bias", "_bias"):
        name = name.removesuffix(ending) or name
    name = re.sub(r"[\s*+()]", "-", name)  # signs of the layout language
    return f"units{name}" if re.fullmatch(r"[_#]\d+", name) else name


def _hint(family: FoundFamily, found: Interpretation) -> str:
    return found.domains.hint(int(family.domains.flat[0]))
