"""PCB-Merging (Du et al. 2024, arXiv 2410.02396) as a method of the engine; its formula is mergeline.balancing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from mergeline.balancing.variants import VariantName
from mergeline.merging.options import KeepRatio
from mergeline.merging.registry import method

if TYPE_CHECKING:
    from torch import Tensor

ClipRatio = Annotated[float, Field(ge=0, lt=0.5)]


def statistics_of_task_vectors(
    chunks: Callable[[], Iterable[Tensor]],
    size: int,
    *,
    variant: VariantName,
    keep_ratio: KeepRatio,
    clip_ratio: ClipRatio | None,
    whole: bool = True,
) -> dict[str, Any]:
    """`pcb_statistics` as a JSON-able dictionary. whole: False for one layer or tensor of a larger model."""
    from mergeline.balancing.statistics import pcb_statistics

    return pcb_statistics(chunks, size, keep_ratio, variant=variant, clip_ratio=clip_ratio, whole=whole).to_dict()


@method("pcb", needs_base=True, statistics=statistics_of_task_vectors)
def pcb(
    task_vectors: Tensor,
    *,
    statistics: dict[str, Any],
    variant: VariantName = "reference",
    keep_ratio: KeepRatio = 0.1,
    scale: float = 1.0,
    scales: Sequence[float] | None = None,
    clip_ratio: ClipRatio | None = None,
) -> Tensor:
    """Parameters compete: each task keeps its strongest share, weighted by how strong it is and how well it agrees.

    task_vectors: [n, c] float32. statistics: of the whole task vectors. variant: which of the published forms.
    keep_ratio: share that survives. scale: lambda of the merged task vector. scales: lambda_i of each task, inside the
    weighted mean. clip_ratio: share clipped at either end of |tau|. Returns the merged task vector [c] float32.
    """
    from mergeline.balancing.pcb import merged_task_vector
    from mergeline.balancing.statistics import PcbStatistics

    return scale * merged_task_vector(task_vectors, PcbStatistics.from_dict(statistics), scales)
