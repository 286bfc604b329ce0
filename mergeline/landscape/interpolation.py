"""Points between models: affine combinations of checkpoints, read tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from mergeline.checkpoints.readers import MeanReader, Reader
from mergeline.errors import InputError


class AffineReader(MeanReader):
    """`sum_i weights[i] * readers[i]`, where the weights sum to 1: one point of the space that the models span.

    Floating tensors are summed in float64 and rounded once to float32; all others come from the first model. A model
    of weight 0 is not read, so a point where one weight is 1 is that model bit for bit. Raises InputError where names
    or shapes of the models differ, or the weights do not sum to 1.
    """

    def __init__(self, readers: Sequence[Reader], weights: Sequence[float]) -> None:
        super().__init__(readers)
        if len(weights) != len(readers) or abs(sum(weights) - 1) > 1e-6:
            raise InputError(f"{len(readers)} models need as many weights, which sum to 1; given are {list(weights)}")
        parts = zip(weights, readers, strict=True)
        self.source = " + ".join(f"{weight:.4g} {reader.source}" for weight, reader in parts if weight != 0)
        self._weights = list(weights)

    def _mean(self, name: str, read: Callable[[Reader], Tensor]) -> Tensor:
        if not self._first.dtype(name).is_floating_point:
            return read(self._first)
        parts = zip(self._weights, self._readers, strict=True)
        return reduce(torch.add, (weight * read(reader).double() for weight, reader in parts if weight != 0)).float()


def line_weights(points: int) -> list[float]:
    """`points` shares of the end, evenly from 0 (the start) to 1, both included."""
    return [place / (points - 1) for place in range(points)]
