"""Stage: how good a model (or an ensemble of several) is at every task, and at all of them at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mergeline.errors import InputError
from mergeline.evaluation.score import Score, mean_score
from mergeline.report.result import RowScores
from tasks.architecture import ArchitectureSpec
from tasks.checkpoints import open_artifacts
from tasks.domains import Answers, Domain, Heads
from tasks.merge_inputs import MergeInputs
from tasks.normalization import calibrated
from tasks.policy import stage
from tasks.store import ArtifactRef

if TYPE_CHECKING:
    from torch import nn


@stage("evaluate")
def evaluate(
    name: str,
    label: str,
    models: list[ArtifactRef],
    architecture: ArchitectureSpec,
    domains: list[Domain],
    classes: list[int] | None,
    reset: bool,
    calibration_batch: int | None,
    batch_size: int,
    heads: dict[str, MergeInputs],
) -> RowScores:
    """Measure one row of the table; several models are an ensemble of their probabilities.

    classes: those of all tasks together, for joint accuracy; None: all that there are; []: there is no such accuracy.
    reset: measure the normalisation statistics of every model anew on each domain's own calibration data.
    heads: task -> the model whose head answers it, for tasks that have one of their own.
    """
    from prefect.logging import get_run_logger

    for domain in domains:
        domain.prepare()  # first: it imports what the stages that run beside this one import too
    modules = [architecture.load(reader, by_name=False) for reader in open_artifacts(models)]
    row = measure(
        modules,
        domains,
        classes,
        calibration_batch if reset else None,
        batch_size,
        name=name,
        label=label,
        heads=read_heads(domains, heads),
    )
    joint = f", joint {row.joint} %" if row.joint else ""
    get_run_logger().info("%s: mean of tasks %s%s%s", label, row.mean, row.mean.unit, joint)
    return row


def read_heads(domains: list[Domain], heads: Mapping[str, MergeInputs]) -> Heads:
    """Task -> the tensors of its own head, for those that have one."""
    from mergeline.checkpoints.heads import head_tensors

    asked = {task: one.head for domain in domains for task, one in domain.tasks.items() if one.head is not None}
    return {task: head_tensors(heads[task].open()[0][0], head) for task, head in asked.items()}


def measure(
    modules: list[nn.Module],
    domains: list[Domain],
    classes: list[int] | None,
    calibration_batch: int | None,
    batch_size: int,
    *,
    name: str,
    label: str,
    heads: Heads | None = None,
) -> RowScores:
    """The scores of modules in memory; calibration_batch: None leaves their normalisation statistics as they are."""
    for domain in domains:
        domain.prepare()
    tasks: dict[str, Score] = {}
    outside: dict[str, Score] = {}
    joint: list[Score | None] = []
    for domain in domains:
        measuring = modules
        try:
            if calibration_batch is not None and domain.calibration is not None:
                measuring = [calibrated(module, domain.calibration, calibration_batch) for module in modules]
            answers = Answers(measuring, domain, batch_size, heads or {})
            for task, asked in domain.tasks.items():
                (outside if asked.outside else tasks)[task] = answers.score(task)
        except InputError as fault:
            raise InputError(f"{label}, measured on {', '.join(domain.tasks)}: {fault}") from fault
        if classes != [] and domain.counts_in_joint:
            joint.append(answers.joint(classes))
    together = [score for score in joint if score]
    return RowScores(
        name=name,
        label=label,
        tasks=tasks,
        mean=mean_score(list(tasks.values())),
        joint=mean_score(together) if together and len(together) == len(joint) else None,
        outside=outside,
    )
