"""Which examples a model is measured on, and how they are labelled."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mergeline.errors import InputError


def spread(rows: Tensor, batches: int | None, batch_size: int) -> Tensor:
    """As many rows as `batches` hold, evenly spread over all of them: a file may be sorted by class. None: all."""
    count = len(rows) if batches is None else min(len(rows), batches * batch_size)
    return rows[torch.arange(count) * len(rows) // max(1, count)]


def labelled_batches(
    inputs: Tensor, labels: Tensor, classes: Sequence[int], batches: int | None, batch_size: int
) -> list[tuple[Tensor, Tensor]]:
    """Inputs [n, ...] with labels [n] of some classes, in batches; the labels become places in `classes`.

    InputError where there is no example of them.
    """
    chosen = torch.isin(labels, torch.tensor(classes)).nonzero().flatten()
    if not len(chosen):
        raise InputError(f"classes {list(classes)}: there is no example of them to measure a model on.")
    chosen = spread(chosen, batches, batch_size)
    places = (labels[chosen][:, None] == torch.tensor(classes)).int().argmax(dim=1)
    return list(zip(inputs[chosen].split(batch_size), places.split(batch_size), strict=True))
