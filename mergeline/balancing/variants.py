"""The names of PCB-Merging's variants (see `mergeline.balancing.competition` for what they compute)."""

from typing import Literal

VariantName = Literal["reference", "nlp", "vision", "pairwise", "paper"]
