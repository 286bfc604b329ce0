"""Stage: closed-form calibration of the merged model on unlabelled inputs, after the merge and apart from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from mergeline.plan_after import Calibrate
from tasks.architecture import ArchitectureSpec
from tasks.checkpoints import open_artifact, open_artifacts, put_checkpoint
from tasks.inputs import DataSlice, read_prototypes
from tasks.normalization import calibrated
from tasks.policy import stage
from tasks.store import ArtifactRef, put_json

if TYPE_CHECKING:
    from torch import Tensor

    from mergeline.alignment.alignment import Alignment


class TaskClasses(BaseModel):
    """The label prototypes of some classes: what a task model's outputs are compared with."""

    model_config = ConfigDict(frozen=True)

    prototypes: ArtifactRef
    classes: list[int]

    def rows(self) -> Tensor:
        """[classes, outputs]."""
        return read_prototypes(self.prototypes)[self.classes]


class CalibratedModel(BaseModel):
    """The calibrated checkpoint, and the record of what was changed (see `CalibrationRecord`)."""

    model_config = ConfigDict(frozen=True)

    model: ArtifactRef
    record: ArtifactRef


@stage("calibrate")
def calibrate_model(
    merged: ArtifactRef,
    models: list[ArtifactRef],
    families: list[int],
    alignment: ArtifactRef | None,
    heads: list[list[TaskClasses]],
    architecture: ArchitectureSpec,
    calibration: DataSlice,
    batch_size: int,
    options: Calibrate,
    max_shard_size: int | None,
) -> CalibratedModel:
    """Refit the merged model to its task models, all with the normalisation statistics of the calibration data.

    families: of each task model; alignment brings family i into the order of family 0 (none: all share one). heads: for
    each task model the classes of its tasks; empty where they are not known.
    """
    from prefect.logging import get_run_logger

    from mergeline.calibration.calibrate import calibrate_and_record
    from mergeline.checkpoints.writer import write_checkpoint

    logger, batches = get_run_logger(), calibration.load().inputs.split(batch_size)
    reader = open_artifact(merged)
    modules = [
        calibrated(architecture.load(model), calibration, batch_size) for model in [reader, *open_artifacts(models)]
    ]
    found = calibrate_and_record(
        modules[0],
        modules[1:],
        _alignment(alignment, families),
        batches,
        centre=options.centre,
        last_layer=None if options.last_layer == "none" else options.last_layer,
        layers=options.layers,
        ridge=options.ridge,
        columns=options.columns,
        heads=known_heads(heads) or None,
    )
    for sentence in found.record.warnings:
        logger.warning("%s", sentence)
    for layer in found.record.layers:
        logger.info("%s: %.4f missing before, %.4f after", layer.name, layer.before, layer.after)
    state = {name: tensor.to(reader.dtype(name)) for name, tensor in found.module.state_dict().items()}

    def write(path: Path, max_shard_size: int | None) -> None:
        write_checkpoint(path, state, max_shard_size=max_shard_size)

    model = put_checkpoint(write, merged, reader.source, max_shard_size)
    return CalibratedModel(model=model, record=put_json(found.record.rounded(), "calibration record"))


def _alignment(ref: ArtifactRef | None, families: list[int]) -> Alignment | None:
    """The alignment of the task models, each as its family."""
    if ref is None:
        return None
    from mergeline.alignment.alignment import Alignment

    return Alignment.load(ref.path).of_members(families)


def known_heads(heads: list[list[TaskClasses]]) -> list[Tensor]:
    """Of each model the prototypes of all classes that it knows, each once."""
    import torch

    return [torch.cat([task.rows() for task in tasks]).unique(dim=0) for tasks in heads]
