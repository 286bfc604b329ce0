"""One matching problem: which unit of each model goes to which merged unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mergeline.errors import InputError


@dataclass(frozen=True, eq=False)
class Matching:
    """`assign` int64 [n * units]: the merged unit of each original unit, model 0 first; `width` merged units in all;
    `value` the mean similarity of the pairs that were matched."""

    assign: Tensor
    width: int
    value: float


def match_units(
    similarity: Tensor, *, models: int = 2, method: Literal["permute"] = "permute", groups: int = 1
) -> Matching:
    """Match the units of models 1.. with those of model 0 so that the total similarity is largest.

    similarity: [n * units, n * units], or only the rows of model 0, [units, n * units]; model 0 first.
    groups: number of equal blocks that must stay together (attention heads, normalisation groups): units are matched
    inside every pair of blocks, then blocks by the mean similarity of their matched units.
    Raises InputError for shapes that do not fit or values that are not finite.
    """
    if method != "permute":
        raise InputError(f"matching method '{method}' is not known; use 'permute'")
    units = _units(similarity, models, groups)
    reference = similarity[:units].double()
    assign, values = [torch.arange(units)], []
    for model in range(1, models):
        block = reference[:, model * units : (model + 1) * units]
        places = assign_blocks(block, groups)
        assign.append(places)
        values.append(float(block[places, torch.arange(units)].mean()))
    return Matching(torch.cat(assign), units, sum(values) / len(values) if values else 1.0)


def assign_blocks(similarity: Tensor, groups: int = 1) -> Tensor:
    """For each unit of the second model (column), the unit of the reference (row) it is assigned to, int64 [units].

    similarity [units, units]; the optimum of the linear assignment problem, blockwise where `groups` > 1.
    """
    units = len(similarity)
    if groups == 1:
        return _assignment(similarity)
    step = units // groups
    tiles = similarity.reshape(groups, step, groups, step).transpose(1, 2)
    inner = torch.stack([torch.stack([_assignment(tile) for tile in row]) for row in tiles])
    columns = torch.arange(step)
    values = torch.stack(
        [torch.stack([tiles[i, j][inner[i, j], columns].mean() for j in range(groups)]) for i in range(groups)]
    )
    outer = _assignment(values)
    return torch.cat([outer[j] * step + inner[outer[j], j] for j in range(groups)])


def _assignment(similarity: Tensor) -> Tensor:
    rows, columns = linear_sum_assignment(similarity.numpy(), maximize=True)
    places = torch.empty(len(rows), dtype=torch.long)
    places[torch.from_numpy(columns)] = torch.from_numpy(rows)
    return places


def _units(similarity: Tensor, models: int, groups: int) -> int:
    """Units per model. Raises InputError unless the shape, the number of groups and the values make sense."""
    columns = similarity.shape[-1]
    if (
        models < 1
        or similarity.ndim != 2
        or columns % models
        or similarity.shape[0] not in (columns, columns // models)
    ):
        raise InputError(
            f"similarity of shape {list(similarity.shape)} does not fit {models} models: "
            "expected [models * units, models * units] or [units, models * units]"
        )
    units = columns // models
    if groups < 1 or units % groups:
        raise InputError(f"{units} units cannot be divided into {groups} equal groups")
    if not torch.isfinite(similarity).all():
        raise InputError("similarity holds NaN or Inf; check the models and the calibration data for them")
    return units
