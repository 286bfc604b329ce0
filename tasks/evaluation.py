"""Stage: how good a model (or an ensemble of several) is at every task, and at all of them at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from mergeline.errors import InputError
from mergeline.evaluation.score import MetricName, Score
from mergeline.report.result import RowScores
from tasks.architecture import ArchitectureSpec
from tasks.checkpoints import open_artifacts
from tasks.inputs import DataSlice
from tasks.normalization import calibrated
from tasks.policy import stage
from tasks.store import ArtifactRef

if TYPE_CHECKING:
    from torch import Tensor, nn


class Question(BaseModel):
    """What a task asks of a slice of data. outside: no model was trained for it, so it counts in no mean."""

    model_config = ConfigDict(frozen=True)

    classes: list[int]
    metric: MetricName = "accuracy"
    outside: bool = False


class Domain(BaseModel):
    """One slice of the data: the examples that measure, the calibration inputs, and the tasks that look at it."""

    model_config = ConfigDict(frozen=True)

    name: str
    examples: DataSlice
    calibration: DataSlice
    prototypes: ArtifactRef
    tasks: dict[str, Question]


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
    from mergeline.evaluation.metrics import accuracy, ensemble_probabilities, mean_score, score_by

    tasks: dict[str, Score] = {}
    outside: dict[str, Score] = {}
    joint: list[Score] = []
    for domain, measured in zip(domains, examples, strict=True):
        measuring = modules
        if calibration_batch is not None:
            measuring = [calibrated(module, domain.calibration, calibration_batch) for module in modules]
        try:
            logits = [_logits(module, domain, batch_size) for module in measuring]
            for task, asked in domain.tasks.items():
                probabilities = ensemble_probabilities(logits, asked.classes)
                score = score_by(asked.metric, probabilities, measured.labels, asked.classes)
                (outside if asked.outside else tasks)[task] = score
        except InputError as fault:
            raise InputError(f"{label}, measured on {', '.join(domain.tasks)}: {fault}") from fault
        if not all(asked.outside for asked in domain.tasks.values()):
            joint.append(accuracy(ensemble_probabilities(logits, classes), measured.labels, classes))
    return RowScores(
        name=name,
        label=label,
        tasks=tasks,
        mean=mean_score(list(tasks.values())),
        joint=mean_score(joint),
        outside=outside,
    )


def _logits(module: nn.Module, domain: Domain, batch_size: int) -> Tensor:
    from mergeline.evaluation.metrics import check_labels, predict_logits
    from mergeline.evaluation.prototypes import load_prototypes, prototype_logits

    examples, prototypes = domain.examples.load(), load_prototypes(domain.prototypes.path).rows
    check_labels(examples.labels, len(prototypes), f"{domain.prototypes.metadata.get('source')} has prototypes of")
    return prototype_logits(predict_logits(module, examples.inputs, batch_size), prototypes)
