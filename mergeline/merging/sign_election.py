"""TIES' last two steps (arXiv 2306.01708): the models elect a sign per entry; those that agree are merged.

Methods that drop entries in another way use the same election: `dare_ties`, `della`, `breadcrumbs_ties`. They have no
majority of the whole vectors at hand: where the votes of an entry cancel, its positive values are merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from mergeline.merging.parts import in_parts
from mergeline.merging.weights import weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

Elect = Literal["mass", "normmass", "normfrac", "none"]
Combine = Literal["mean", "sum", "max"]


def elect_and_merge(rows: Tensor, weights: Sequence[float] | None, combine: Combine, scale: float) -> Tensor:
    """scale * what agrees with the sign elected by mass, positive where votes cancel: [n, c], overwritten -> [c]."""

    def merge(part: Tensor) -> Tensor:
        return merge_agreeing(part, elected_sign(part, "mass", weights), 1, weights, combine).mul_(scale)

    return in_parts(merge, rows)


def elected_sign(
    rows: Tensor, elect: Elect, weights: Sequence[float] | None = None, norms: Sequence[float] = ()
) -> Tensor | None:
    """The sign that the models elect for each entry: [n, c] float32 -> [c] of 1, 0 (their votes cancel) and -1.

    elect: by the sum of the entries ("mass"), by the sum of their signed shares in the squared norm of their row
    ("normmass"), by the entry with the largest such share alone ("normfrac"), or not at all ("none": returns None).
    norms: of the whole rows, for the middle two.
    """
    if elect == "none":
        return None
    if elect == "mass":
        return weighted_sum(rows, weights).sign_().float()
    shares = rows / rows.new_tensor([norm or 1.0 for norm in norms])[:, None]  # their squares order as they do
    if elect == "normmass":
        return weighted_sum(shares.mul_(shares.abs()), weights).sign_().float()
    return rows.gather(0, shares.abs_().argmax(dim=0, keepdim=True))[0].sign_()


def merge_agreeing(
    rows: Tensor, sign: Tensor | None, majority: int, weights: Sequence[float] | None, combine: Combine
) -> Tensor:
    """The mean, sum or largest of the entries whose sign is the elected one: [n, c], overwritten -> [c] float64.

    sign: elected, None merges all that are not 0. majority: the sign taken where `sign` is 0; if it is 0 too, mean and
    sum take the negative entries and max gives 0, as the authors' program does. The mean divides by the sum of the
    weights of the agreeing entries.
    """
    import torch

    if sign is not None:
        sign = sign.add_(sign.abs().sub_(1).mul_(-majority)) if majority else sign
        direction = (sign - 0.5).sign_()
        rows.mul_(direction).clamp_(min=0)  # what agrees, as magnitudes
    if combine == "max":
        largest = rows.gather(0, rows.abs().argmax(dim=0, keepdim=True))[0]
        return (largest if sign is None else largest.mul_(sign)).double()
    merged = weighted_sum(rows, weights)
    if combine == "mean":
        merged /= weighted_sum(rows.sign_().abs_(), weights).clamp_(min=torch.finfo(torch.float64).tiny)
    return merged if sign is None else merged.mul_(direction)
