"""Solving the normal equations of a least squares problem."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def solve(gram: Tensor, pull: Tensor, ridge: float) -> Tensor:
    """pull @ (gram + ridge * I)^-1 for a symmetric gram [in, in] >= 0, pull [out, in]: [out, in], nearly 0 along
    directions that gram does not have.

    The ridge grows tenfold only where rounding left the matrix indefinite.
    """
    import torch

    fault = True
    while fault:
        factor, info = torch.linalg.cholesky_ex(gram.diagonal_scatter(gram.diagonal() + ridge))
        fault, ridge = bool(info), 10 * ridge
    return torch.cholesky_solve(pull.T, factor).T
