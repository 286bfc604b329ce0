"""The kinds of steps that random programs are made of."""

from tests.symmetry.steps import layers, pairs, values  # noqa: F401
from tests.symmetry.steps.making import BINARY, UNARY, Maker, Step, fits

__all__ = ["BINARY", "UNARY", "Maker", "Step", "fits"]
