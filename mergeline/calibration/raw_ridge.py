"""A ridge from raw inputs to what task models say: what calibration data alone can do, without any network.

W = (G + lambda * mean(diag G) * I)^-1 X^T Y / n,   G = X^T X / n,   with centred inputs X [n, k] and targets Y [n, m]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mergeline.calibration.heads import Heads
from mergeline.calibration.refit import check_finite


def raw_ridge(
    modules: Sequence[nn.Module], batches: Sequence[Tensor], *, ridge: float, centre: bool, heads: Heads | None = None
) -> nn.Module:
    """A module of one linear layer, float32, from flattened inputs to the mean of the modules' outputs [n, outputs], or
    to what their heads say.

    batches: real-valued inputs. ridge: as that of a calibration. centre: the mean output on these inputs is zero.
    Raises InputError for outputs that are not finite.
    """
    x = torch.cat([batch.flatten(1) for batch in batches]).double()
    with torch.no_grad():
        y = torch.cat([_target([module(batch) for module in modules], heads) for batch in batches]).double()
    check_finite(y, "the task models' outputs")
    weights = ridge_weights(x - x.mean(dim=0), y - y.mean(dim=0), ridge)
    linear = nn.Linear(x.shape[1], y.shape[1])
    with torch.no_grad():
        linear.weight.copy_(weights.T)
        linear.bias.copy_((0.0 if centre else y.mean(dim=0)) - x.mean(dim=0) @ weights)
    return nn.Sequential(nn.Flatten(), linear).eval()


def ridge_weights(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    """Float64 [k, m] for centred float64 x [n, k] and y [n, m]; solved in the smaller of n and k, 0 where x is."""
    count, inputs = x.shape
    damping = ridge * (float(x.square().mean()) or 1.0)
    gram = (x.T @ x if inputs <= count else x @ x.T) / count
    gram.diagonal().add_(damping)
    if inputs <= count:
        return torch.linalg.solve(gram, x.T @ y / count)
    return x.T @ torch.linalg.solve(gram, y / count)


def _target(outputs: Sequence[Tensor], heads: Heads | None) -> Tensor:
    return torch.stack(list(outputs)).mean(dim=0) if heads is None else heads(outputs, -1)
