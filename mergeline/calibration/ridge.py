"""Ridge regression with a prior: how much the weights of a layer change so that it gives a wanted output.

    D = C (G + lambda * mean(diag G) * I)^-1,   G = X X^T / n,   C = (Y - W0 X) X^T / n,   W = W0 + D

All are sums over columns, gathered batch by batch in float64; columns are centred where the layer has a bias to take
up the means. With lambda -> infinity the layer stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from scipy.linalg.lapack import dpocon
from torch import Tensor

from mergeline.calibration.forms import Taps, against, products, sums


@dataclass
class Moments:
    """Sums over the columns seen so far, float64; of joint maps, the inputs of all stand one after the other.

    inputs, gram: [g, k] and [g, k, k]. missing, cross: of what is missing (wanted less given output), [g, m] and
    [g, m, k]. count: columns.
    """

    count: int = 0
    inputs: Tensor = field(default_factory=lambda: torch.zeros(()))
    gram: Tensor = field(default_factory=lambda: torch.zeros(()))
    missing: Tensor = field(default_factory=lambda: torch.zeros(()))
    cross: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add_inputs(self, maps: Sequence[Taps]) -> None:
        """Add the inputs of a batch, of all maps that are solved jointly."""
        blocks: list[list[Tensor]] = []
        for i, one in enumerate(maps):
            blocks.append([blocks[j][i].mT if j < i else products(one, two) for j, two in enumerate(maps)])
        self.gram = self.gram + torch.cat([torch.cat(row, dim=2) for row in blocks], dim=1)
        self.inputs = self.inputs + torch.cat([sums(taps) for taps in maps], dim=1)
        self.count += maps[0].matrices[0].shape[2]

    def add_missing(self, missing: Tensor, maps: Sequence[Taps]) -> None:
        """Add what is missing in the same batch, [g, m, columns]."""
        self.cross = self.cross + torch.cat([against(missing, taps) for taps in maps], dim=2)
        self.missing = self.missing + missing.sum(dim=2).double()

    def add_cross(self, cross: Tensor, missing: Tensor) -> None:
        """`add_missing` where the products [g, m, k] of a batch are known."""
        self.cross = self.cross + cross
        self.missing = self.missing + missing

    def forget_missing(self) -> None:
        """Begin anew with what is missing: the wanted output has changed."""
        self.cross, self.missing = torch.zeros(()), torch.zeros(())


TRUSTED = 1e8
"""Condition number beyond which the rounding of float32 products decides what the weights are."""


class Solver:
    """The factor of G + lambda * mean(diag G) * I, for several wanted outputs.

    centred: about the means of the columns; otherwise about 0, for layers without a bias. ridge: the lambda that was
    used: tenfold as often as it takes where the one asked for is below the rounding of G.
    """

    def __init__(self, moments: Moments, ridge: float, shift: Tensor, *, centred: bool) -> None:
        """shift: [g, k], what was taken off all inputs; ridge: lambda > 0, may be infinite."""
        self._mean = moments.inputs / moments.count
        self._shift, self._centred, self.ridge = shift.double(), centred, ridge
        means = torch.einsum("gi,gj->gij", self._mean, self._mean)
        self._gram = moments.gram / moments.count - means
        if not centred:
            whole = self._mean + self._shift
            self._gram = self._gram + torch.einsum("gi,gj->gij", whole, whole)
        diagonal = self._gram.diagonal(dim1=1, dim2=2)
        self.scale = float(diagonal.mean())
        self._factor: Tensor | None = None
        while self.ridge != float("inf") and self.varies and not self._factorise():
            self.ridge *= 10

    def _factorise(self) -> bool:
        """The factor with the ridge as it is; whether it can be trusted."""
        damped = self._gram.clone()
        damped.diagonal(dim1=1, dim2=2).add_(self.ridge * self.scale)
        self._factor, faults = torch.linalg.cholesky_ex(damped)
        self._norms = torch.linalg.matrix_norm(damped, 1).tolist()
        return not faults.any() and self.condition <= TRUSTED

    @property
    def varies(self) -> bool:
        """Whether the inputs differ at all between columns, beyond rounding."""
        size = float((self._mean + self._shift).square().mean())
        return self.scale > 1e-10 * size if self._centred else self.scale > 0

    @property
    def condition(self) -> float:
        """Condition number of the damped Gram matrix in the 1-norm, as LAPACK estimates it; of the worst group."""
        if self._factor is None:
            return 1.0
        pairs = zip(self._factor.cpu(), self._norms, strict=True)
        reciprocals = [dpocon(factor.numpy(), norm, uplo="L")[0] for factor, norm in pairs]
        return 1 / max(min(reciprocals), 1e-300)

    def solve(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """The change of the weights [g, m, k] and of the bias [g, m], float64.

        The bias takes up nearly all of the mean that is missing: 1 / (1 + lambda^2) of it, so that it stays, too, where
        lambda is very large.
        """
        count = moments.count
        missing, mean = moments.missing / count, self._mean
        cross = moments.cross / count - torch.einsum("gm,gk->gmk", missing, mean)
        if not self._centred:
            cross = cross + torch.einsum("gm,gk->gmk", missing, mean + self._shift)
        if self._factor is None:
            change = torch.zeros_like(cross)
        else:
            change = torch.cholesky_solve(cross.mT.contiguous(), self._factor).mT
        if not self._centred:
            return change, torch.zeros_like(missing)
        kept = missing - torch.einsum("gmk,gk->gm", change, mean + self._shift)
        growth = 1 + self.ridge * self.ridge  # a product beyond float64 is inf, where a power is an error
        return change, kept / growth

    def spread(self, weights: Tensor) -> Tensor:
        """The variance of the outputs of some weights [g, m, k] on the columns, float64 [g, m]."""
        return torch.einsum("gmi,gij,gmj->gm", weights, self._gram, weights).clamp_min(0)

    def means(self, weights: Tensor) -> Tensor:
        """The mean of these outputs, float64 [g, m]."""
        return torch.einsum("gmk,gk->gm", weights, self._mean + self._shift)
