"""Stages: what the data of its tasks say about the parameters of a model, for methods that weigh models by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from prefect import Task
from pydantic import BaseModel, ConfigDict

from mergeline.plan import Merge
from tasks.architecture import ArchitectureSpec
from tasks.inputs import DataSlice
from tasks.merging import MergeInputs, evidence_of
from tasks.policy import stage
from tasks.store import ArtifactRef, put_file

if TYPE_CHECKING:
    from torch import Tensor, nn


class TaskData(BaseModel):
    """What one task measures a model on: examples, the prototypes of all classes, and those of the task.

    prototypes: None where the model's own last layer gives the logits. classes: None stands for all labels.
    """

    model_config = ConfigDict(frozen=True)

    examples: DataSlice
    prototypes: ArtifactRef | None
    classes: list[int] | None

    def labelled(self, count: int | None, batch_size: int) -> list[tuple[Tensor, Tensor]]:
        """Batches of inputs of the task's classes, labelled by their place among these; `count` batches, or all."""
        examples = self.examples.load()
        from mergeline.evidence.batches import labelled_batches

        return labelled_batches(examples.inputs, examples.labels, self._classes, count, batch_size)

    def unlabelled(self, count: int | None, batch_size: int) -> list[Tensor]:
        """Batches of inputs of any class."""
        examples = self.examples.load()
        from mergeline.evidence.batches import spread

        return list(spread(examples.inputs, count, batch_size).split(batch_size))

    def logits(self) -> Callable[[Tensor], Tensor]:
        """Outputs of the module [b, d] -> logits [b, classes of the task]."""
        from mergeline.evaluation.heads import label_logits
        from mergeline.evaluation.prototypes import load_prototypes, prototype_logits

        classes = self._classes
        if self.prototypes is None:
            labels = len(self.examples.load().class_names)
            return lambda outputs: label_logits(getattr(outputs, "logits", outputs), classes, labels)[:, classes]
        rows = load_prototypes(self.prototypes.path).rows
        return lambda embeddings: prototype_logits(embeddings, rows)[:, classes]

    @property
    def _classes(self) -> list[int]:
        return list(range(len(self.examples.load().class_names))) if self.classes is None else self.classes


@stage("collect-fisher")
def collect_fisher(
    name: str,
    model: MergeInputs,
    architecture: ArchitectureSpec,
    tasks: list[TaskData],
    batches: int | None,
    batch_size: int,
) -> ArtifactRef:
    """The diagonal Fisher information of a model, in the unit order that it is merged in: the mean over its tasks."""
    from mergeline.evidence.fisher import fisher_diagonal
    from mergeline.evidence.measuring import mean_of

    labelled = [(task.labelled(batches, batch_size), task.logits()) for task in tasks]
    module = _module(model, architecture)
    return _put(mean_of([fisher_diagonal(module, pairs, logits=logits) for pairs, logits in labelled]), "fisher", name)


@stage("collect-grams")
def collect_grams(
    name: str,
    model: MergeInputs,
    architecture: ArchitectureSpec,
    tasks: list[TaskData],
    batches: int | None,
    batch_size: int,
) -> ArtifactRef:
    """The Gram matrices of the inputs of a model's layers, in the unit order that it is merged in, over all its tasks.

    No labels are looked at.
    """
    from mergeline.evaluation.tokens import attention_mask
    from mergeline.evidence.gram import gram_matrices

    found = [batch for task in tasks for batch in task.unlabelled(batches, batch_size)]
    attended = attention_mask if any(task.examples.has_texts for task in tasks) else None
    return _put(gram_matrices(_module(model, architecture), found, attended=attended), "grams", name)


def collector(merge: Merge) -> Task[..., ArtifactRef]:
    """The stage that collects what a method declares as its evidence."""
    return {"fisher": collect_fisher, "gram": collect_grams}[evidence_of(merge) or ""]


def _module(model: MergeInputs, architecture: ArchitectureSpec) -> nn.Module:
    (reader,), _ = model.open()
    return architecture.load(reader)


def _put(found: Mapping[str, Tensor], kind: str, name: str) -> ArtifactRef:
    from mergeline.checkpoints.writer import write_checkpoint

    return put_file(lambda path: write_checkpoint(path, found), ".safetensors", kind, name=f"{kind} of {name}")
