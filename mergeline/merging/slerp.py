"""SLERP (Shoemake 1985, Animating rotation with quaternion curves): two models, interpolated along the arc."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from mergeline.merging.inner_products import inner_products
from mergeline.merging.registry import method
from mergeline.merging.weights import weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

PARALLEL = 0.9995  # |cosine| from which the arc is taken as straight; mergekit's bound


def products_of_rows(chunks: Callable[[], Iterable[Tensor]], size: int) -> dict[str, Any]:
    """All inner products of the whole rows."""
    return {"products": inner_products(chunks)}


@method(
    "slerp",
    needs_base=False,
    statistics=products_of_rows,
    granularity="tensor",
    models=(2, 2),
    symmetric=False,
    idempotent=True,
)
def slerp(models: Tensor, *, statistics: dict[str, Any], t: Annotated[float, Field(ge=0, le=1)] = 0.5) -> Tensor:
    """Two models interpolated along the arc between them, not along its chord, which would shorten the weights.

    theta = sin((1 - t) phi) / sin(phi) theta_0 + sin(t phi) / sin(phi) theta_1,  cos(phi) = theta_0 . theta_1 / norms;
    (1 - t) theta_0 + t theta_1 where |cos(phi)| > 0.9995 or a norm is 0.
    models: [2, c] float32. statistics: inner products of the whole rows. t: 0 gives the first model, 1 the second.
    Returns [c] float32.
    """
    (aa, ab), (_, bb) = statistics["products"]
    norms = math.sqrt(aa) * math.sqrt(bb)
    cosine = ab / norms if norms else 1.0
    if abs(cosine) > PARALLEL:
        return weighted_sum(models, [1 - t, t]).float()
    angle = math.acos(cosine)
    return weighted_sum(
        models, [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]
    ).float()
