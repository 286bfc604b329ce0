"""How well a model tells classes apart, with the standard error that its number of pictures allows."""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

from mergeline.errors import InputError
from mergeline.evaluation.score import Score


def predict_logits(module: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """The module's outputs [n, d] for images [n, c, h, w], float32 on the CPU; batches go to the module's device.

    Raises InputError where the module is in training mode: its statistics would change while it is measured.
    """
    if module.training:
        raise InputError("predict_logits: the module is in training mode; call .eval() first.")
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    with torch.no_grad():
        return torch.cat([module(batch.to(device)).float().cpu() for batch in images.split(batch_size)])


def accuracy(scores: Tensor, labels: Tensor, classes: Sequence[int] | None = None) -> Score:
    """Share of pictures whose true class scores highest among `classes` (default: all).

    scores: [n, c], anything that grows with belief; labels: [n] int64. Pictures of other classes are left out.
    Ties go to the class named first. Standard error: that of a share, sqrt(p (1 - p) / n).
    Raises InputError where a class does not exist or no picture is left.
    """
    chosen = _chosen(classes, scores.shape[1])
    kept = torch.isin(labels, torch.tensor(chosen))
    if not kept.any():
        raise InputError(f"classes {chosen}: there is no picture of them.")
    predicted = torch.tensor(chosen)[scores[kept][:, chosen].argmax(dim=1)]
    value = float(multiclass_accuracy(predicted, labels[kept], num_classes=scores.shape[1], average="micro"))
    count = int(kept.sum())
    return Score(value, sqrt(value * (1 - value) / count), count)


def mean_score(scores: Sequence[Score]) -> Score:
    """Mean over independent tasks, each of the same weight; standard errors add in squares."""
    n = len(scores)
    error = sqrt(sum(score.standard_error**2 for score in scores)) / n
    return Score(sum(score.value for score in scores) / n, error, sum(score.count for score in scores))


def ensemble_probabilities(logits: Sequence[Tensor], classes: Sequence[int] | None = None) -> Tensor:
    """Mean over models of the softmax of their logits, each [n, c] -> [n, c]: the costly upper mark of a merge.

    classes: the softmax is taken among these (default: all); the others have probability 0.
    """
    chosen = _chosen(classes, logits[0].shape[1])
    probabilities = torch.zeros_like(logits[0])
    probabilities[:, chosen] = torch.stack([model[:, chosen].softmax(dim=1) for model in logits]).mean(dim=0)
    return probabilities


def _chosen(classes: Sequence[int] | None, count: int) -> list[int]:
    """The classes to choose among; InputError where one of them does not exist or stands twice."""
    chosen = list(range(count)) if classes is None else list(classes)
    if not chosen or len(set(chosen)) < len(chosen) or not all(0 <= c < count for c in chosen):
        raise InputError(f"classes {chosen}: expected different numbers from 0 to {count - 1}.")
    return chosen
