"""Stage: how good a ridge from raw inputs is, a control of what a calibration gives. It is no checkpoint."""

from __future__ import annotations

from mergeline.plan_after import Calibrate
from mergeline.report.result import RowScores
from tasks.architecture import ArchitectureSpec
from tasks.calibration import TaskClasses, known_heads
from tasks.checkpoints import open_artifacts
from tasks.domains import Domain
from tasks.evaluation import measure
from tasks.inputs import DataSlice
from tasks.normalization import calibrated
from tasks.policy import stage
from tasks.store import ArtifactRef


@stage("evaluate-ridge")
def evaluate_ridge(
    name: str,
    label: str,
    models: list[ArtifactRef],
    architecture: ArchitectureSpec,
    calibration: DataSlice,
    heads: list[list[TaskClasses]],
    options: Calibrate,
    domains: list[Domain],
    classes: list[int] | None,
    calibration_batch: int,
    batch_size: int,
) -> RowScores:
    """Fit it on the calibration inputs to what the last layer is calibrated to, and measure it as one row of the table.

    heads: for each task model the classes of its tasks; empty where they are not known.
    """
    for domain in domains:
        domain.prepare()
    from mergeline.calibration.heads import Heads
    from mergeline.calibration.raw_ridge import raw_ridge

    fitted = raw_ridge(
        [calibrated(architecture.load(model), calibration, calibration_batch) for model in open_artifacts(models)],
        calibration.load().inputs.split(calibration_batch),
        ridge=options.ridge,
        centre=options.centre,
        heads=Heads(known_heads(heads)) if options.last_layer == "heads" else None,
    )
    return measure([fitted], domains, classes, None, batch_size, name=name, label=label)
