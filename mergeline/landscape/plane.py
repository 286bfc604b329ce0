"""The plane through three models, as in Garipov et al. 2018 (section 3 and appendix A.1); axes as Li et al. 2018.

With models A, B, C as vectors of all their parameters: u = (B - A) / |B - A|, and v is what Gram and Schmidt leave of
C - A beside u, scaled to length 1. A lies at (0, 0), B on the x axis. A point A + x u + y v of the plane is an affine
combination of the three models, so no direction is ever stored, and the models themselves are points without rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from pydantic import BaseModel, ConfigDict

Products = Sequence[Sequence[float]]
INDEPENDENT = 1e-3
"""A model spans a plane with two others where it is farther from their line than this share of its distance."""


class Placed(BaseModel):
    """A model's nearest point of the plane, in the unit of the parameters, and how far from there it is."""

    model_config = ConfigDict(frozen=True)

    name: str
    x: float
    y: float
    off: float


class Plane(BaseModel):
    """A grid on the plane through three models. anchors: their names (A, B and C); models: where all models lie.

    xs, ys: the grid's coordinates, rising. problem: why there is no plane; then all else is empty.
    """

    model_config = ConfigDict(frozen=True)

    anchors: list[str] = []
    models: list[Placed] = []
    xs: list[float] = []
    ys: list[float] = []
    problem: str = ""

    def weights(self, x: float, y: float) -> list[float]:
        """The shares of the anchors A, B and C whose sum is the point (x, y): (1, 0, 0) at A, and so on."""
        _, second, third = self._places()
        along_c = y / third.y
        along_b = (x - third.x * along_c) / second.x
        return [1.0 - along_b - along_c, along_b, along_c]

    def row(self, number: int) -> list[list[float]]:
        """The shares of the anchors at every point of a row of the grid, from the left."""
        return [self.weights(x, self.ys[number]) for x in self.xs]

    def _places(self) -> list[Placed]:
        named = {model.name: model for model in self.models}
        return [named[name] for name in self.anchors]


def lay_plane(names: Sequence[str], products: Products, *, shown: int, points: int, margin: float) -> Plane:
    """The plane through the first two models and the first of the others that does not lie on their line.

    names: [n]; products: [n - 1, n - 1], of `inner_products`. shown: so many models are placed, those after them only
    where they are needed. points: of the grid per side; margin: how far the grid reaches beyond the three models, as
    a share of the larger extent of their triangle.
    """
    length = sqrt(products[0][0])
    if length == 0:
        return Plane(problem=f"{names[0]} and {names[1]} are the same model, so no plane lies between them")
    found = _third(products)
    if found is None:
        listed = ", ".join(names)
        return Plane(problem=f"{listed} lie on one line, which has no plane; the lines show what lies between them")
    xs = [along / length for along in products[0]]  # of B, then of the others
    above = _beside_line(products, found)
    ys = [(products[found][model] - xs[found] * x) / above for model, x in enumerate(xs)]
    ys[0], ys[found] = 0.0, above
    models = [Placed(name=names[0], x=0.0, y=0.0, off=0.0)]
    for model in range(len(xs)):
        if model + 1 < shown or model == found:
            off = 0.0 if model in (0, found) else products[model][model] - xs[model] ** 2 - ys[model] ** 2
            models.append(Placed(name=names[model + 1], x=xs[model], y=ys[model], off=sqrt(max(0.0, off))))
    corners = ([0.0, xs[0], xs[found]], [0.0, ys[found]])
    beyond = margin * max(max(side) - min(side) for side in corners)
    grid = [_spread(min(side) - beyond, max(side) + beyond, points) for side in corners]
    anchors = [names[0], names[1], names[found + 1]]
    return Plane(anchors=anchors, models=models, xs=grid[0], ys=grid[1])


def _third(products: Products) -> int | None:
    """The first model after B that is not on the line of A and B: its place among the differences."""
    for model in range(1, len(products)):
        distance = sqrt(products[model][model])
        if distance and _beside_line(products, model) > INDEPENDENT * distance:
            return model
    return None


def _beside_line(products: Products, model: int) -> float:
    """Length of what Gram and Schmidt leave of a difference beside the first: its distance from the line."""
    along = products[0][model] ** 2 / products[0][0]
    return sqrt(max(0.0, products[model][model] - along))


def _spread(low: float, high: float, points: int) -> list[float]:
    return [low + (high - low) * place / (points - 1) for place in range(points)]
