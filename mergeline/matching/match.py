"""One matching problem: which unit of each model goes to which merged unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mergeline.errors import InputError
from mergeline.matching.assignment import assign_blocks
from mergeline.matching.zip import kept_units, merges_within, zip_units

Method = Literal["permute", "zip"]


@dataclass(frozen=True, eq=False)
class Matching:
    """`assign` int64 [n * units]: the merged unit of each original unit, model 0 first; `width` merged units in all;
    `value` the mean similarity of the pairs that were matched."""

    assign: Tensor
    width: int
    value: float


def match_units(
    similarity: Tensor,
    *,
    models: int = 2,
    method: Method = "permute",
    groups: int = 1,
    reduce: float | None = None,
    decay: float = 0.5,
    budget: float = 1.0,
) -> Matching:
    """Match the units of n models, so that what is alike comes together (MuDSC section 3.3).

    similarity: [n * units, n * units], model 0 first; to permute, the rows of model 0 are enough: [units, n * units].
    method: `permute` gives every unit of model 0 one of each other model, at the largest total similarity; `zip` merges
    the most alike pair of all, of different models or one, again and again. groups: equal blocks of units that stay
    together (attention heads, normalisation groups): units are assigned inside every pair of blocks, then blocks by
    the mean similarity of their units; zip then works inside each set of blocks.
    reduce: share of all units that zip merges away (1 - 1/n keeps the width of one model). decay: a merged unit is as
    alike to others as the less alike of its two, times this (so of three equal models, the third is less alike to a
    merged pair). budget: share of the merges that may be within models; each model has one in any case.
    Raises InputError for shapes or options that do not fit or values that are not finite.
    """
    units, similarity = _units(similarity, models, groups), similarity.detach()
    blocks = [similarity[:units, m * units : (m + 1) * units].double().cpu() for m in range(models)]
    orders = [torch.arange(units), *(assign_blocks(block, groups) for block in blocks[1:])]
    if method == "permute":
        matched = [block[torch.arange(units), order].mean() for block, order in zip(blocks, orders, strict=True)]
        value = float(torch.stack(matched[1:]).mean()) if models > 1 else 1.0
        return Matching(torch.cat([order.argsort() for order in orders]), units, value)
    if method != "zip":
        raise InputError(f"matching method '{method}' is not known; use 'permute' or 'zip'")
    if similarity.shape[0] != similarity.shape[1]:
        raise InputError("to zip, similarity must be [models * units, models * units]: units of one model merge, too")
    check_zip_options(reduce, decay, budget)
    step = units // groups
    members = torch.stack([order.reshape(groups, step) + m * units for m, order in enumerate(orders)], dim=1)
    members = members.sort(dim=2).values.flatten(1)  # [groups, models * step]: model by model, units in their order
    assign, width, values = torch.empty(models * units, dtype=torch.long), 0, list[float]()
    for rows in members:
        inside = similarity.cpu()[rows][:, rows]
        matching = zip_models(inside, models, reduce=reduce, decay=decay, budget=budget)
        assign[rows] = matching.assign + width
        width += matching.width
        values.append(matching.value)
    return Matching(assign, width, sum(values) / len(values))


def zip_models(similarity: Tensor, models: int, *, reduce: float | None, decay: float, budget: float) -> Matching:
    """Zip units that need not stay together, [n * units, n * units], without a check of the input."""
    total = len(similarity)
    width = kept_units(total, 1 - 1 / models if reduce is None else reduce)
    if width < 1:
        raise InputError(f"zip: reduce is {reduce}, which leaves none of {total} units; lower it")
    origin = np.repeat(np.arange(models), total // models)
    budgets = np.full(models, merges_within(total, width, models, budget))
    zipped = zip_units(similarity.double().numpy(), origin, width, decay, budgets)
    value = float(zipped.similarity.mean()) if len(zipped.similarity) else 1.0
    return Matching(torch.from_numpy(zipped.assign), width, value)


def check_zip_options(reduce: float | None, decay: float, budget: float) -> None:
    """Raise InputError, naming the option, where one is outside its range."""
    if reduce is not None and not 0 <= reduce < 1:
        raise InputError(f"zip: reduce is {reduce}; it is a share of the units, at least 0 and below 1")
    if not 0 <= decay <= 1:
        raise InputError(f"zip: decay is {decay}; it must be between 0 and 1")
    if not 0 <= budget < float("inf"):
        raise InputError(f"zip: budget is {budget}; it must be a number that is not negative")


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
