"""How sure a model is of the right answers: cross-entropy, the loss that classifiers are trained with."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import cross_entropy

from mergeline.errors import InputError
from mergeline.evaluation.metrics import chosen_examples, places_among


def mean_loss(logits: Tensor, labels: Tensor, classes: Sequence[int] | None = None) -> float:
    """Cross-entropy in nats, mean over the examples, with a softmax among `classes` (default: all).

    logits: [n, c]; of label prototypes the cosines times 100, as in training; labels: [n] int64. Examples of other
    classes are left out. The logits are taken in float32, the mean in float64. Raises InputError where a class does
    not exist, no example is left, or the loss is not finite.
    """
    losses = example_losses(logits, labels, classes)
    bad = int((~losses.isfinite()).sum())
    if bad:
        raise InputError(
            f"the loss is not finite for {bad} of {len(losses)} examples; the weights of the model diverged, or the "
            f"merge made them too large (a smaller scale may help)"
        )
    return float(losses.double().mean())


def example_losses(logits: Tensor, labels: Tensor, classes: Sequence[int] | None = None) -> Tensor:
    """The cross-entropy of every example of the classes, [k] float32, finite or not; arguments as of `mean_loss`."""
    chosen, kept = chosen_examples(labels, classes, logits.shape[1])
    places = places_among(chosen, logits.shape[1])
    return cross_entropy(logits[kept][:, chosen].float(), places[labels[kept]], reduction="none")
