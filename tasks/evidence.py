"""Stages: what the data of its tasks say about the parameters of a model, for methods that weigh models by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from prefect import Task
from pydantic import BaseModel, ConfigDict

from mergeline.plan import Merge
from tasks.architecture import ArchitectureSpec
from tasks.inputs import DataSlice, read_prototypes
from tasks.merge_inputs import MergeInputs
from tasks.merging import evidence_of
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

    def unlabelled(self, count: int | None, batch_size: int, own: bool) -> list[Tensor]:
        """Batches of inputs of any class, or of the task's own."""
        if own:
            return [inputs for inputs, _ in self.labelled(count, batch_size)]
        examples = self.examples.load()
        from mergeline.evidence.batches import spread

        return list(spread(examples.inputs, count, batch_size).split(batch_size))

    def logits(self) -> Callable[[Tensor], Tensor]:
        """Outputs of the module [b, d] -> logits [b, classes of the task]."""
        from mergeline.evaluation.heads import label_logits
        from mergeline.evaluation.prototypes import prototype_logits

        classes = self._classes
        if self.prototypes is None:
            labels = len(self.examples.load().class_names)
            return lambda outputs: label_logits(getattr(outputs, "logits", outputs), classes, labels)[:, classes]
        rows = read_prototypes(self.prototypes)
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
    own: bool = False,
) -> ArtifactRef:
    """The Gram matrices of the inputs of a model's layers, in the unit order that it is merged in, over all its tasks.

    Labels are looked at only to find the pictures of the tasks' own classes, where these are wanted.
    """
    from mergeline.evidence.gram import gram_matrices

    found = [batch for task in tasks for batch in task.unlabelled(batches, batch_size, own)]
    return _put(gram_matrices(_module(model, architecture), found, attended=_attended(tasks)), "grams", name)


class Collected(BaseModel):
    """What was measured of each model, where one stage measures all of them."""

    model_config = ConfigDict(frozen=True)

    evidence: list[ArtifactRef]


@stage("collect-merged-grams")
def collect_merged_grams(
    names: list[str],
    models: MergeInputs,
    architecture: ArchitectureSpec,
    tasks: list[list[TaskData]],
    batches: int | None,
    batch_size: int,
    own: bool,
    method: str,
    options: dict[str, Any],
    by_pattern: dict[str, dict[str, Any]],
) -> Collected:
    """For each model the Gram matrices of the layers' inputs on the data of its tasks, in the merged model.

    Layers are merged one after the other on the way, so this is one stage for all models, and depends on the options
    of the merge. Where models are measured on the same pictures, they weigh the same, and the result is their average:
    so each has pictures of its own classes, unless the plan wants any.
    """
    from mergeline.evidence.merged_gram import merged_gram_matrices
    from mergeline.merging.patterns import option_of

    readers, _ = models.open()
    inputs = [[batch for task in its for batch in task.unlabelled(batches, batch_size, own)] for its in tasks]
    alpha = option_of("alpha", method, options, by_pattern)
    attended = _attended([task for its in tasks for task in its])
    found = merged_gram_matrices(architecture.load(readers[0]), readers, inputs, alpha=alpha, attended=attended)
    return Collected(evidence=[_put(own, "grams", name) for name, own in zip(names, found, strict=True)])


def collector(merge: Merge) -> Task[..., ArtifactRef] | Task[..., Collected]:
    """The stage that collects what a method declares as its evidence."""
    stages: dict[str, Any] = {"fisher": collect_fisher, "gram": collect_grams, "merged_gram": collect_merged_grams}
    return stages[evidence_of(merge) or ""]


def each(found: Iterable[ArtifactRef | Collected]) -> list[ArtifactRef]:
    """What was measured of each model, whichever stages did it."""
    return [ref for one in found for ref in (one.evidence if isinstance(one, Collected) else [one])]


def _attended(tasks: list[TaskData]) -> Callable[[Tensor], Tensor] | None:
    """Which positions of inputs count: of texts, those that are not padding."""
    from mergeline.evaluation.tokens import attention_mask

    return attention_mask if any(task.examples.has_texts for task in tasks) else None


def _module(model: MergeInputs, architecture: ArchitectureSpec) -> nn.Module:
    (reader,), _ = model.open()
    return architecture.load(reader)


def _put(found: Mapping[str, Tensor], kind: str, name: str) -> ArtifactRef:
    from mergeline.checkpoints.writer import write_checkpoint

    return put_file(lambda path: write_checkpoint(path, found), ".safetensors", kind, name=f"{kind} of {name}")
