"""The assignment problem: a partner for every unit, so that the total similarity is largest."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def assign(similarity: Tensor) -> Tensor:
    """For each row, the column it is assigned to, int64 [units]; similarity [units, units], exact optimum."""
    _, columns = linear_sum_assignment(similarity.numpy(), maximize=True)
    return torch.from_numpy(columns)


def assign_blocks(similarity: Tensor, groups: int = 1) -> Tensor:
    """The same where `groups` equal blocks of units stay together: inside every pair of blocks, then block by block.

    A pair of blocks is worth the mean similarity of its assigned units.
    """
    if groups == 1:
        return assign(similarity)
    step = len(similarity) // groups
    tiles = similarity.reshape(groups, step, groups, step).transpose(1, 2)
    inner = torch.stack([torch.stack([assign(tile) for tile in row]) for row in tiles])
    values = tiles.gather(3, inner[..., None]).mean(dim=(2, 3))
    outer = assign(values)
    return (outer[:, None] * step + inner[torch.arange(groups), outer]).flatten()
