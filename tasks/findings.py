"""Stage: what only the report shows of the matching."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict

from mergeline.comparison import CONTROL_RANDOM, Row
from mergeline.plan import Align
from tasks.checkpoints import open_artifacts
from tasks.permutations import BALANCE_SEARCH
from tasks.policy import stage
from tasks.store import ArtifactRef, put_json


class Aligned(BaseModel):
    """An alignment, and what it was found on: one checkpoint per family, their similarities before matching.

    random: another one that was drawn, where a control needs it.
    """

    model_config = ConfigDict(frozen=True)

    alignment: ArtifactRef
    families: list[ArtifactRef]
    weights: ArtifactRef
    activations: ArtifactRef
    random: ArtifactRef | None = None

    def of(self, row: Row) -> ArtifactRef | None:
        """What brings the models of a row of the table into one unit order."""
        return self.random if row.name == CONTROL_RANDOM else self.alignment

    def mapped(self, options: Align) -> dict[str, Any]:
        """Arguments of `map_similarity`."""
        refs = {name: getattr(self, name) for name in type(self).model_fields if name != "random"}
        return refs | {"space": options.space, "balance": options.balance}


@stage("map-similarity")
def map_similarity(
    alignment: ArtifactRef,
    families: list[ArtifactRef],
    weights: ArtifactRef,
    activations: ArtifactRef,
    space: str,
    balance: float,
) -> ArtifactRef:
    """Small tables of the similarity of a few groups before and after matching, for heat maps."""
    from safetensors.torch import load_file

    from mergeline.alignment.alignment import Alignment
    from mergeline.report.similarity_maps import similarity_maps

    searched = alignment.path / BALANCE_SEARCH
    maps = similarity_maps(
        open_artifacts(families),
        Alignment.load(alignment.path),
        space=space,
        balance=json.loads(searched.read_text())["balance"] if searched.is_file() else balance,
        weights=load_file(weights.path),
        activations=load_file(activations.path),
    )
    return put_json([found.model_dump(mode="json") for found in maps], "similarity maps")
