"""A model's own last layer: which class each of its outputs stands for."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mergeline.errors import InputError


def label_logits(outputs: Tensor, classes: Sequence[int] | None, labels: int) -> Tensor:
    """The outputs [n, c] of a head as logits of all labels of a dataset, [n, labels]; -inf for those that it has not.

    A head has an output per label of the dataset, in their order, or one per class of its task, in the order of
    `classes`. Raises InputError where it has another number of outputs.
    """
    count = outputs.shape[1]
    if count == labels:
        return outputs
    if classes is not None and count == len(classes) and max(classes) < labels:
        logits = outputs.new_full((len(outputs), labels), -torch.inf)
        logits[:, list(classes)] = outputs
        return logits
    of_task = f", and the task has {len(classes)} classes" if classes is not None else ""
    raise InputError(
        f"the last layer has {count} outputs, but the dataset has {labels} labels{of_task}; a head has an output per "
        "label, or one per class of its task in the order of `classes`"
    )


def answers_all(logits: Tensor, classes: Sequence[int] | None) -> bool:
    """Whether logits [n, labels] of `label_logits` have outputs for all of these classes (None: for every label).

    Classes that do not exist are left to what chooses among them.
    """
    own = logits.isfinite().all(dim=0)
    return all(own[number] for number in classes or range(len(own)) if number < len(own))
