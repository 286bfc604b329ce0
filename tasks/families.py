"""Stage: one checkpoint per family of models of one unit order, to find the alignment on."""

from __future__ import annotations

from tasks.architecture import ArchitectureSpec
from tasks.checkpoints import open_artifact, open_artifacts
from tasks.inputs import DataSlice
from tasks.normalization import calibrated
from tasks.policy import stage
from tasks.store import ArtifactRef, put_file


@stage("represent-family")
def represent_family(
    name: str, members: list[ArtifactRef], architecture: ArchitectureSpec, calibration: DataSlice, batch_size: int
) -> ArtifactRef:
    """The mean of the members (a base alone is itself) with its normalisation statistics measured anew."""
    from mergeline.checkpoints.readers import MeanReader
    from mergeline.checkpoints.writer import write_checkpoint

    reader = open_artifact(members[0]) if len(members) == 1 else MeanReader(open_artifacts(members))
    module = calibrated(architecture.load(reader), calibration, batch_size)
    return put_file(lambda path: write_checkpoint(path, module.state_dict()), ".safetensors", "checkpoint", name=name)
