"""Stage: what only the report shows of the competition for parameters."""

from __future__ import annotations

from typing import Any

from tasks.merge_inputs import MergeInputs
from tasks.policy import stage
from tasks.store import ArtifactRef, put_json, read_json


@stage("count-winners")
def count_winners(inputs: MergeInputs, coefficients: ArtifactRef, options: dict[str, Any]) -> ArtifactRef:
    """How many parameters each task model keeps and wins in the competition of PCB-Merging."""
    from mergeline.report.winners import winners_of_merge

    models, bases = inputs.open()
    statistics: Any = read_json(coefficients)
    winners = winners_of_merge(models, base=bases, statistics=statistics, copy_only=inputs.copy_only, **options)
    return put_json(winners.model_dump(mode="json"), "winners")
