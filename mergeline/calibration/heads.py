"""What the heads of the task models say about their outputs: a better target for the last layer than their mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mergeline.errors import InputError
from mergeline.evaluation.prototypes import SCALE


class Heads:
    """The rows of every task model's head: the cosines of its output with them are its logits (times a number).

    A row that several heads have is one class of all of them.
    """

    def __init__(self, heads: Sequence[Tensor]) -> None:
        """heads: for each task model [own classes, outputs]. Raises InputError where they do not fit together."""
        widths = {head.shape[-1] for head in heads}
        if len(widths) != 1 or any(head.ndim != 2 for head in heads):
            raise InputError(
                "calibration: heads must be one matrix [classes, outputs] per task model, all with as many outputs; "
                f"they are {', '.join(str(list(head.shape)) for head in heads)}"
            )
        if not all(head.isfinite().all() and head.any(dim=1).all() for head in heads):
            raise InputError(
                "calibration: heads hold NaN, Inf or a row of zeros, so outputs have no cosine with it; check them"
            )
        self._heads = [normalize(head.double(), dim=1) for head in heads]
        self.rows, places = torch.cat(self._heads).unique(dim=0, return_inverse=True)
        self._places = places.split([len(head) for head in heads])
        self._owners = torch.bincount(places, minlength=len(self.rows)).double()
        self._back = torch.linalg.pinv(self.rows).T  # [classes, outputs]

    def logits(self, values: Sequence[Tensor]) -> Tensor:
        """Every model's cosines with its own classes less their mean for each example, float64 [n, all classes].

        values: each model's outputs [n, outputs]. Classes that several models know get their mean.
        """
        found = values[0].new_zeros(len(values[0]), len(self.rows), dtype=torch.float64)
        for value, head, places in zip(values, self._heads, self._places, strict=True):
            own = normalize(value.double(), dim=1) @ head.to(value.device).T
            found.index_add_(1, places.to(value.device), own - own.mean(dim=1, keepdim=True))
        return found / self._owners.to(found.device)

    def __call__(self, values: Sequence[Tensor], channel: int) -> Tensor:
        """The outputs [n, outputs] that have these logits with all classes; of many, the smallest."""
        if values[0].ndim != 2 or values[0].shape[1] != self.rows.shape[1]:
            raise InputError(
                f"calibration: the heads read {self.rows.shape[1]} outputs of an example, and the last layer gives the "
                f"shape {list(values[0].shape)}; give heads that fit, or use last_layer: mean"
            )
        return (SCALE * self.logits(values) @ self._back.to(values[0].device)).float()

    def expected(self, values: Sequence[Tensor]) -> Tensor:
        """How many of the examples are expected in each class, float64 [all classes]."""
        return (SCALE * self.logits(values)).softmax(dim=1).sum(dim=0)
