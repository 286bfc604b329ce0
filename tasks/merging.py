"""Stages: the coefficients of a merge (what its method must know of the whole models), and the merge itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from mergeline.plan import Merge
from tasks.checkpoints import open_artifacts
from tasks.policy import stage
from tasks.store import ArtifactRef, put_file, put_json, read_json

if TYPE_CHECKING:
    from mergeline.checkpoints.readers import Reader
    from mergeline.merging.merged import MergedTensors


class MergeInputs(BaseModel):
    """Task models, the base of each (none: the method needs none), and the family each belongs to.

    alignment: brings family i into the order of family 0; none where all share one order or stay as they are.
    """

    model_config = ConfigDict(frozen=True)

    models: list[ArtifactRef]
    bases: list[ArtifactRef]
    families: list[int]
    alignment: ArtifactRef | None

    def open(self) -> tuple[list[Reader], list[Reader]]:
        """Readers of the models and of their bases, in the reference's unit order; equal bases are one object."""
        models, bases = open_artifacts(self.models), open_artifacts(self.bases)
        if self.alignment is None:
            return models, bases
        from mergeline.alignment.alignment import Alignment
        from mergeline.alignment.apply import AlignedReader

        alignment = Alignment.load(self.alignment.path)
        views = {
            id(reader): AlignedReader(reader, alignment, family)
            for readers in (models, bases)
            for reader, family in zip(readers, self.families, strict=False)
        }
        return [views[id(reader)] for reader in models], [views[id(reader)] for reader in bases]


def has_coefficients(merge: Merge) -> bool:
    """Whether the method must know something of the whole models before it merges them."""
    from mergeline.merging.registry import get

    return get(merge.method).statistics is not None


@stage("pcb-coefficients")
def pcb_coefficients(inputs: MergeInputs, method: str, options: dict[str, Any]) -> ArtifactRef:
    """Clip bounds, threshold and largest score of every task vector: what turns any chunk into its coefficients."""
    from mergeline.merging.engine import method_statistics

    models, bases = inputs.open()
    statistics: Any = method_statistics(models, base=bases, method=method, **options)
    return put_json(statistics, "coefficients")


@stage("merge")
def merge_models(name: str, inputs: MergeInputs, coefficients: ArtifactRef | None, merge: Merge) -> ArtifactRef:
    """Stream the task models through the method into one checkpoint."""
    from mergeline.checkpoints.writer import write_checkpoint

    tensors = merged_tensors(inputs, coefficients, merge)
    return put_file(lambda path: write_checkpoint(path, tensors), ".safetensors", "checkpoint", name=name)


def merged_tensors(inputs: MergeInputs, coefficients: ArtifactRef | None, merge: Merge) -> MergedTensors:
    """The merged tensors, computed as they are asked for."""
    import torch

    from mergeline.merging.engine import merge as stream

    models, bases = inputs.open()
    statistics: Any = read_json(coefficients) if coefficients else None
    return stream(
        models,
        base=bases or None,
        method=merge.method,
        onto=merge.onto,
        out_dtype=getattr(torch, merge.out_dtype) if merge.out_dtype else None,
        statistics=statistics,
        **merge.grouping,
        **merge.options,
    )
