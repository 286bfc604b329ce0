"""Stage: the picture of the result."""

from __future__ import annotations

from mergeline.report.result import Comparison
from tasks.policy import stage
from tasks.store import ArtifactRef, put_file, read_json


@stage("draw-chart")
def draw_comparison(scores: ArtifactRef) -> ArtifactRef:
    """The picture of the result."""
    from mergeline.report.chart import draw_chart

    comparison = Comparison.model_validate(read_json(scores))
    return put_file(lambda path: draw_chart(comparison, path), ".png", "chart")
