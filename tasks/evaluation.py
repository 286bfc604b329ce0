"""Stage: how good a model (or an ensemble of several) is at every task, and at all of them at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from mergeline.evaluation.score import Score
from mergeline.report.result import RowScores
from tasks.architecture import ArchitectureSpec
from tasks.checkpoints import open_artifacts
from tasks.inputs import DataSlice
from tasks.normalization import calibrated
from tasks.policy import stage
from tasks.store import ArtifactRef

if TYPE_CHECKING:
    from torch import Tensor, nn


class Domain(BaseModel):
    """One slice of the data: the examples that measure, the calibration inputs, and the tasks that look at it."""

    model_config = ConfigDict(frozen=True)

    name: str
    examples: DataSlice
    calibration: DataSlice
    prototypes: ArtifactRef
    tasks: dict[str, list[int]]


@stage("evaluate")
def evaluate(
    name: str,
    label: str,
    models: list[ArtifactRef],
    architecture: ArchitectureSpec,
    domains: list[Domain],
    classes: list[int],
    reset: bool,
    calibration_batch: int,
    batch_size: int,
) -> RowScores:
    """Measure one row of the table; several models are an ensemble of their probabilities.

    classes: those of all tasks together, for joint accuracy. reset: measure the normalisation statistics of every model
    anew on each domain's own calibration data.
    """
    from prefect.logging import get_run_logger

    for domain in domains:
        domain.examples.load()  # first: it imports what the stages that run beside this one import too
    modules = [architecture.load(reader) for reader in open_artifacts(models)]
    row = measure(modules, domains, classes, calibration_batch if reset else None, batch_size, name=name, label=label)
    get_run_logger().info("%s: mean of tasks %s %%, joint %s %%", label, row.mean, row.joint)
    return row


def measure(
    modules: list[nn.Module],
    domains: list[Domain],
    classes: list[int],
    calibration_batch: int | None,
    batch_size: int,
    *,
    name: str,
    label: str,
) -> RowScores:
    """The scores of modules in memory; calibration_batch: None leaves their normalisation statistics as they are."""
    examples = [domain.examples.load() for domain in domains]
    from mergeline.evaluation.metrics import accuracy, ensemble_probabilities, mean_score

    tasks: dict[str, Score] = {}
    joint: list[Score] = []
    for domain, measured in zip(domains, examples, strict=True):
        measuring = modules
        if calibration_batch is not None:
            measuring = [calibrated(module, domain.calibration, calibration_batch) for module in modules]
        logits = [_logits(module, domain, batch_size) for module in measuring]
        labels = measured.labels
        tasks |= {
            task: accuracy(ensemble_probabilities(logits, among), labels, among) for task, among in domain.tasks.items()
        }
        joint.append(accuracy(ensemble_probabilities(logits, classes), labels, classes))
    return RowScores(
        name=name, label=label, tasks=tasks, mean=mean_score(list(tasks.values())), joint=mean_score(joint)
    )


def _logits(module: nn.Module, domain: Domain, batch_size: int) -> Tensor:
    from mergeline.evaluation.metrics import predict_logits
    from mergeline.evaluation.prototypes import load_prototypes, prototype_logits

    embeddings = predict_logits(module, domain.examples.load().images, batch_size)
    return prototype_logits(embeddings, load_prototypes(domain.prototypes.path).rows)
