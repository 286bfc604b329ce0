"""Stage: recompute the normalisation statistics of a checkpoint on calibration data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.architecture import ArchitectureSpec
from tasks.checkpoints import open_artifact
from tasks.inputs import DataSlice
from tasks.policy import stage
from tasks.store import ArtifactRef, put_file

if TYPE_CHECKING:
    from torch import nn


@stage("reset-normalization")
def reset_normalization(
    model: ArtifactRef, architecture: ArchitectureSpec, calibration: DataSlice, batch_size: int
) -> ArtifactRef:
    """The checkpoint with the statistics that its normalisation layers see on the calibration data."""
    from mergeline.checkpoints.writer import write_checkpoint

    reader = open_artifact(model)
    state = calibrated(architecture.load(reader), calibration, batch_size).state_dict()
    return put_file(lambda path: write_checkpoint(path, state), ".safetensors", "checkpoint", name=reader.source)


@stage("measure-normalization")
def measure_normalization(
    model: ArtifactRef, architecture: ArchitectureSpec, calibration: DataSlice, batch_size: int
) -> ArtifactRef:
    """Only those statistics, to be loaded over the checkpoint where inputs are like the calibration data."""
    from safetensors.torch import save_file

    from mergeline.calibration.normalization import normalization_statistics

    statistics = normalization_statistics(calibrated(architecture.load(open_artifact(model)), calibration, batch_size))
    return put_file(lambda path: save_file(statistics, path), ".safetensors", "normalization")


def calibrated(module: nn.Module, calibration: DataSlice, batch_size: int) -> nn.Module:
    """A copy of the module whose normalisation statistics are those of a slice of data."""
    from mergeline.calibration.normalization import reset_normalization

    return reset_normalization(module, calibration.load().images.split(batch_size))
