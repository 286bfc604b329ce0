"""Stage: recompute the normalisation statistics of a checkpoint on calibration data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.architecture import ArchitectureSpec
from tasks.checkpoints import open_artifact, put_checkpoint
from tasks.inputs import DataSlice
from tasks.policy import stage
from tasks.store import ArtifactRef, put_file

if TYPE_CHECKING:
    from torch import nn


@stage("reset-normalization")
def reset_normalization(
    model: ArtifactRef,
    architecture: ArchitectureSpec,
    calibration: DataSlice,
    batch_size: int,
    max_shard_size: int | None,
) -> ArtifactRef:
    """The checkpoint with the statistics that its normalisation layers see on the calibration data, in its dtypes."""
    from mergeline.checkpoints.writer import write_checkpoint
    from mergeline.models.file_names import by_file_names

    reader = open_artifact(model)
    module = calibrated(architecture.load(reader, by_name=False), calibration, batch_size)
    named = by_file_names(module.state_dict(), module, reader)
    state = {name: tensor.to(reader.dtype(name)) for name, tensor in named.items()}

    def write(path: Path, max_shard_size: int | None) -> None:
        write_checkpoint(path, state, max_shard_size=max_shard_size)

    return put_checkpoint(write, model, reader.source, max_shard_size)


@stage("measure-normalization")
def measure_normalization(
    model: ArtifactRef, architecture: ArchitectureSpec, calibration: DataSlice, batch_size: int
) -> ArtifactRef:
    """Only those statistics, to be loaded over the checkpoint where inputs are like the calibration data."""
    from safetensors.torch import save_file

    from mergeline.calibration.normalization import normalization_statistics
    from mergeline.models.file_names import by_file_names

    reader = open_artifact(model)
    module = calibrated(architecture.load(reader, by_name=False), calibration, batch_size)
    statistics = by_file_names(normalization_statistics(module), module, reader)
    return put_file(lambda path: save_file(statistics, path), ".safetensors", "normalization")


def calibrated(module: nn.Module, calibration: DataSlice, batch_size: int) -> nn.Module:
    """A copy of the module whose normalisation statistics are those of a slice of data."""
    from mergeline.calibration.normalization import reset_normalization

    return reset_normalization(module, calibration.load().inputs.split(batch_size))
