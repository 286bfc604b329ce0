"""What is asked of models on one slice of the data, and their answers; several models answer together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from mergeline.evaluation.kinds import CAUSAL_LM, HEAD, PROTOTYPES, SEQ2SEQ, has_loss, is_classification
from mergeline.evaluation.score import MetricName, Score
from tasks.inputs import DataSlice, read_prototypes
from tasks.store import ArtifactRef

if TYPE_CHECKING:
    from torch import Tensor, nn

Heads = Mapping[str, Mapping[str, "Tensor"]]


class Question(BaseModel):
    """What a task asks of a slice of data. classes: None stands for all that the head has. head: the part of the module
    that is the task's own. outside: no model was trained for it, so it counts in no mean.

    target_column, max_new_tokens: of texts to generate. code: the version of a user's function.
    """

    model_config = ConfigDict(frozen=True)

    classes: list[int] | None = None
    metric: MetricName = "accuracy"
    outside: bool = False
    kind: str = PROTOTYPES
    head: str | None = None
    target_column: str | None = None
    max_new_tokens: int | None = None
    code: str = ""

    @property
    def has_loss(self) -> bool:
        """Whether answers have a loss: those of classifications and language models do."""
        return has_loss(self.kind)


class Domain(BaseModel):
    """One slice of the data: the examples that measure, the calibration inputs, and the tasks that look at it."""

    model_config = ConfigDict(frozen=True)

    name: str
    examples: DataSlice
    calibration: DataSlice | None
    prototypes: ArtifactRef | None
    tasks: dict[str, Question]

    @property
    def counts_in_joint(self) -> bool:
        """Whether a classification that a model was trained for looks at it."""
        return any(not asked.outside and is_classification(asked.kind) for asked in self.tasks.values())

    def prepare(self) -> None:
        """Read the data: that also imports what reads and measures, before any stage does."""
        if any(is_classification(asked.kind) for asked in self.tasks.values()):
            self.examples.load()
        else:
            self.examples.rows()


class Answers:
    """The answers of modules to the tasks of a domain. heads: task -> the tensors of the head that is its own."""

    def __init__(self, modules: Sequence[nn.Module], domain: Domain, batch_size: int, heads: Heads) -> None:
        self._modules, self._domain, self._batch_size, self._heads = modules, domain, batch_size, heads
        self._logits: dict[tuple[str, str | None], list[Tensor]] = {}

    def score(self, task: str) -> Score:
        """How good the answers to a task are. Raises InputError where they are none."""
        asked = self._domain.tasks[task]
        if is_classification(asked.kind):
            return self._classified(asked.metric, self.logits(task), asked.classes)
        if asked.kind == CAUSAL_LM:
            from mergeline.evaluation.language import perplexity

            return perplexity(self._modules, self._domain.examples.tokens(), self._batch_size)
        (module,) = self._modules  # a text and a user's number have no mean over models
        if asked.kind == SEQ2SEQ:
            return self._generated(module, asked)
        from mergeline.evaluation.functions import judge

        return judge(asked.kind, module, self._domain.examples.rows(), asked.metric, self._batch_size)

    def loss(self, task: str) -> float:
        """The loss in nats of the first module at a task that has one (`Question.has_loss`): cross-entropy among its
        classes, or of the next token. InputError where it is not finite."""
        asked = self._domain.tasks[task]
        if asked.kind == CAUSAL_LM:
            return log(self.score(task).value)
        from mergeline.evaluation.losses import mean_loss

        return mean_loss(self.logits(task)[0], self._domain.examples.load().labels, asked.classes)

    def accuracy(self, task: str) -> float | None:
        """Share of right answers of the modules at a classification; None of other kinds."""
        asked = self._domain.tasks[task]
        if not is_classification(asked.kind):
            return None
        return self._classified("accuracy", self.logits(task), asked.classes).value

    def joint(self, classes: list[int] | None) -> Score | None:
        """Accuracy among the classes of all tasks (None: all that there are); None where a model has no output for one
        of them, since its last layer has an output per class of each task."""
        from mergeline.evaluation.heads import answers_all

        asked = (task for task, one in self._domain.tasks.items() if is_classification(one.kind) and not one.outside)
        logits = self.logits(next(asked))
        if not all(answers_all(model, classes) for model in logits):
            return None
        return self._classified("accuracy", logits, classes)

    def _classified(self, metric: MetricName, logits: list[Tensor], classes: list[int] | None) -> Score:
        from mergeline.evaluation.metrics import ensemble_probabilities, score_by

        labels = self._domain.examples.load().labels
        return score_by(metric, ensemble_probabilities(logits, classes), labels, classes)

    def _generated(self, module: nn.Module, asked: Question) -> Score:
        from mergeline.evaluation.generation import exact_match

        examples = self._domain.examples
        return exact_match(
            module,
            examples.tokens(),
            examples.texts(asked.target_column or "target"),
            examples.tokenizer.path,
            max_new_tokens=asked.max_new_tokens or 64,
            batch_size=self._batch_size,
        )

    def logits(self, task: str) -> list[Tensor]:
        """Of every module the logits [n, labels] of a classification; tasks that are answered in one way share them."""
        asked = self._domain.tasks[task]
        own = task if asked.head is not None else None
        key = (asked.kind, own or (repr(asked.classes) if asked.kind == HEAD else None))
        if key not in self._logits:
            answer = self._by_head if asked.kind == HEAD else self._by_prototypes
            self._logits[key] = [answer(module, task) for module in self._modules]
        return self._logits[key]

    def _by_head(self, module: nn.Module, task: str) -> Tensor:
        from mergeline.evaluation.heads import label_logits
        from mergeline.evaluation.metrics import predict_logits

        examples, head = self._domain.examples.load(), self._heads.get(task)
        outputs = predict_logits(module, examples.inputs, self._batch_size, head=head)
        return label_logits(outputs, self._domain.tasks[task].classes, len(examples.class_names))

    def _by_prototypes(self, module: nn.Module, task: str) -> Tensor:
        from mergeline.evaluation.metrics import check_labels, predict_logits
        from mergeline.evaluation.prototypes import prototype_logits

        examples, file = self._domain.examples.load(), self._domain.prototypes
        assert file is not None, "the plan was checked"
        prototypes = read_prototypes(file)
        check_labels(examples.labels, len(prototypes), f"{file.metadata.get('source')} has prototypes of")
        return prototype_logits(predict_logits(module, examples.inputs, self._batch_size), prototypes)
