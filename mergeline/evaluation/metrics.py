"""How well a model tells classes apart, with the standard error that its number of examples allows."""

from collections.abc import Callable, Mapping, Sequence
from math import sqrt

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix
from tqdm import tqdm

from mergeline.errors import InputError
from mergeline.evaluation.score import MetricName, Score
from mergeline.evaluation.tokens import are_tokens, batches_by_length
from mergeline.evidence.measuring import unfit_inputs_named

SHOWN = 20  # batches from which on there is a progress bar


def predict_logits(
    module: nn.Module, inputs: Tensor, batch_size: int = 256, *, head: Mapping[str, Tensor] | None = None
) -> Tensor:
    """The module's outputs [n, d] for inputs [n, ...], float32 on the CPU; batches go to the module's device.

    head: tensors by their names in the module, in place of its own while it is asked. Texts [n, 2, length] are taken in
    batches of like length.
    Raises InputError where the module is in training mode (its statistics would change while it is measured), or cannot
    take inputs of that shape, or its outputs are not of that shape, or not finite.
    """
    if module.training:
        raise InputError("predict_logits: the module is in training mode; call .eval() first.")
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    batches, places = batches_by_length(inputs, batch_size) if are_tokens(inputs) else (inputs.split(batch_size), None)
    with torch.no_grad():
        own = {name: tensor.to(device) for name, tensor in (head or {}).items()}
        quiet = True if len(batches) < SHOWN else None  # None: where somebody sees it
        shown = tqdm(batches, desc="batches", leave=False, disable=quiet)
        with unfit_inputs_named(inputs[:batch_size]):
            found = [functional_call(module, own, (batch.to(device),)) for batch in shown]
    outputs = torch.cat([getattr(batch, "logits", batch).float().cpu() for batch in found])
    if outputs.ndim != 2:
        raise InputError(f"the model gives outputs of shape {list(outputs.shape)}; expected a row for each example")
    return check_finite(outputs if places is None else outputs[places])


def check_finite(outputs: Tensor) -> Tensor:
    """The outputs [n, d] as they are. Raises InputError where one of them is NaN or infinite."""
    bad = int((~outputs.isfinite()).any(dim=1).sum())
    if bad:
        raise InputError(
            f"the outputs of the model are not finite for {bad} of {len(outputs)} examples; its weights diverged, or "
            f"the merge made them too large (a smaller scale may help)"
        )
    return outputs


def check_labels(labels: Tensor, count: int, having: str) -> None:
    """Raises InputError where a label [n] is no place among `count` classes; having: what has so many classes."""
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < count:
        wrong = int(labels.max()) if int(labels.max()) >= count else int(labels.min())
        raise InputError(f"the label {wrong} is outside the range of the classes: {having} {count}, 0 to {count - 1}")


def accuracy(scores: Tensor, labels: Tensor, classes: Sequence[int] | None = None) -> Score:
    """Share of examples whose true class scores highest among `classes` (default: all).

    scores: [n, c], anything that grows with belief; labels: [n] int64. Examples of other classes are left out.
    Ties go to the class named first. Standard error: that of a share, sqrt(p (1 - p) / n).
    Raises InputError where a class does not exist or no example is left.
    """
    predicted, true, _ = _answers(scores, labels, classes)
    value = float(multiclass_accuracy(predicted, true, num_classes=scores.shape[1], average="micro"))
    count = len(true)
    return Score(value, sqrt(value * (1 - value) / count), count)


def score_by(metric: MetricName, scores: Tensor, labels: Tensor, classes: Sequence[int] | None = None) -> Score:
    """A classification metric; arguments and errors as of `accuracy`.

    balanced_accuracy: mean recall over the classes that have examples; f1: mean F1 over the classes that are true or
    predicted of some example. Their standard errors are those of a bootstrap of the examples.
    """
    if metric == "accuracy":
        return accuracy(scores, labels, classes)
    predicted, true, chosen = _answers(scores, labels, classes)
    places = places_among(chosen, scores.shape[1])
    counts = multiclass_confusion_matrix(places[predicted], places[true], num_classes=len(chosen))
    rule = {"balanced_accuracy": _mean_recall, "f1": _mean_f1}[metric]
    return Score(float(rule(counts.double())), _bootstrap_error(rule, counts), len(true))


def _mean_recall(counts: Tensor) -> Tensor:
    """counts: [..., true, predicted] float64 -> [...]."""
    right, truly = counts.diagonal(dim1=-2, dim2=-1), counts.sum(dim=-1)
    return (right / truly.clamp(min=1)).sum(dim=-1) / (truly > 0).sum(dim=-1)


def _mean_f1(counts: Tensor) -> Tensor:
    """counts: [..., true, predicted] float64 -> [...]; F1 = 2 right / (true + predicted)."""
    right, asked = counts.diagonal(dim1=-2, dim2=-1), counts.sum(dim=-1) + counts.sum(dim=-2)
    return (2 * right / asked.clamp(min=1)).sum(dim=-1) / (asked > 0).sum(dim=-1)


def _bootstrap_error(rule: Callable[[Tensor], Tensor], counts: Tensor, draws: int = 1000) -> float:
    """Standard deviation of the metric over samples of as many examples with replacement (Efron 1979), seed 0.

    A metric of the confusion matrix [c, c] needs no examples: the matrix of a sample is multinomial.
    """
    table = counts.numpy()
    shares = table.ravel() / table.sum()
    samples = np.random.default_rng(0).multinomial(int(table.sum()), shares, size=draws)
    return float(rule(torch.from_numpy(samples.reshape(draws, *table.shape)).double()).std(correction=1))


def _answers(scores: Tensor, labels: Tensor, classes: Sequence[int] | None) -> tuple[Tensor, Tensor, list[int]]:
    """Predicted and true classes [n] of the examples of the chosen classes, and these."""
    chosen, kept = chosen_examples(labels, classes, scores.shape[1])
    return torch.tensor(chosen)[scores[kept][:, chosen].argmax(dim=1)], labels[kept], chosen


def chosen_examples(labels: Tensor, classes: Sequence[int] | None, count: int) -> tuple[list[int], Tensor]:
    """The classes to choose among (None: all `count`), and which of the labels [n] are of them, [n] bool.

    Raises InputError where a class does not exist or stands twice, or no example is left.
    """
    chosen = _chosen(classes, count)
    kept = torch.isin(labels, torch.tensor(chosen))
    if not kept.any():
        raise InputError(f"classes {chosen}: there is no example of them.")
    return chosen, kept


def places_among(chosen: Sequence[int], count: int) -> Tensor:
    """Where each of `count` classes stands among the chosen ones, [count] int64; -1 for the others."""
    places = torch.full((count,), -1, dtype=torch.long)
    places[list(chosen)] = torch.arange(len(chosen))
    return places


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
