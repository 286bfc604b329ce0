"""Tasks that a function of the user judges: `module:function`."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mergeline.errors import InputError
from mergeline.evaluation.kinds import MEASURES
from mergeline.evaluation.score import MetricName, Score
from mergeline.models.build import import_function

if TYPE_CHECKING:
    import datasets


def judge(name: str, module: nn.Module, rows: datasets.Dataset, metric: MetricName, batch_size: int) -> Score:
    """What a user's function says of a module.

    The function is called as function(module, rows, batch_size=...): the module in eval mode, gradients off; rows, the
    task's slice of its split as a `datasets.Dataset` with all columns; the plan's batch size. It returns a number per
    example (a tensor or a sequence, [n]), of which the score is the mean, with the standard error of a mean; or a Score
    of its own. metric: what the numbers are; accuracy and exact_match are shares in [0, 1], score grows with how good
    the model is, loss falls.
    Raises InputError where the function fails or gives something else, or a number that is not finite.
    """
    function = import_function(name, "tasks.kind")
    try:
        with torch.no_grad():
            found = function(module, rows, batch_size=batch_size)
    except InputError:
        raise
    except Exception as error:  # whatever someone else's function raises, the plan named it
        raise InputError(f"{name} failed: {type(error).__name__}: {error}") from error
    score = found if isinstance(found, Score) else _mean(name, found)
    if not all(map(_is_finite, (score.value, score.standard_error))):
        raise InputError(
            f"{name} gives a score that is not finite: {score.value}, standard error {score.standard_error}"
        )
    measure = MEASURES[metric]
    if measure == "share" and not 0 <= score.value <= 1:
        raise InputError(f"{name} gives {score.value:g}, which is no share in [0, 1]; write metric: score")
    return Score(score.value, score.standard_error, score.count, measure)


def _mean(name: str, found: Any) -> Score:
    """Mean of one number per example."""
    try:
        values = found.detach().cpu().double() if isinstance(found, Tensor) else torch.tensor(list(found)).double()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} gives a {type(found).__name__}, not a Score or a number per example") from error
    if values.ndim != 1 or not len(values):
        raise InputError(f"{name} gives numbers of shape {list(values.shape)}; expected one per example")
    bad = int((~values.isfinite()).sum())
    if bad:
        raise InputError(f"{name} gives numbers that are not finite for {bad} of {len(values)} examples")
    count = len(values)
    off = float(values.std(correction=1)) / sqrt(count) if count > 1 else 0.0
    return Score(float(values.mean()), off, count)


def _is_finite(number: float) -> bool:
    return bool(torch.tensor(float(number)).isfinite())
