"""Distances and angles between models, as vectors of all their parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from mergeline.checkpoints.readers import Reader

CHUNK = 1 << 20  # parameters whose differences are held in float64 at once


def inner_products(readers: Sequence[Reader], names: Iterable[str], chunk: int = CHUNK) -> list[list[float]]:
    """[n - 1, n - 1], summed in float64: inner products of the differences between each further model and the first.

    names: the tensors that count. In memory is one tensor of each model, and `chunk` parameters of all in float64.
    """
    first, others = readers[0], readers[1:]
    products = torch.zeros(len(others), len(others), dtype=torch.float64)
    for name in names:
        start = first.read(name).reshape(-1)
        tensors = [reader.read(name).reshape(-1) for reader in others]
        for begin in range(0, len(start), chunk):
            part = slice(begin, begin + chunk)
            base = start[part].double()
            differences = torch.stack([tensor[part].double() - base for tensor in tensors])
            products += differences @ differences.T
    return products.tolist()
