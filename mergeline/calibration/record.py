"""What a calibration changed, for the report and for whoever wants to know."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from mergeline.calibration.sites import Layer


@dataclass(frozen=True)
class LayerRecord:
    """One layer (or several whose outputs are summed, which are solved jointly) before and after its refit.

    tensors: the names of those that changed. inputs, columns: unknowns per output, and equations to find them. before,
    after: the mean square that misses to the task models' mean, as a share of that one's variance, behind the ReLU
    where one follows. condition: of the damped Gram matrix. ridge: lambda as it was used (see `Solver`).
    """

    name: str
    tensors: tuple[str, ...]
    inputs: int
    columns: int
    before: float
    after: float
    condition: float
    ridge: float


@dataclass
class CalibrationRecord:
    """All of a calibration. images: examples it looked at. kept: layers that kept their weights, and why.

    centred: the length of the mean output that was subtracted; None where nothing was. shares: how often each class is
    expected among the calibration examples by the task models' heads, where these are known. warnings: sentences.
    """

    images: int = 0
    layers: list[LayerRecord] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    centred: float | None = None
    shares: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def keep(self, layer: Layer, why: str) -> None:
        """Note that a layer keeps its weights."""
        self.kept |= {site.name: why for site in layer.sites}

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    def rounded(self, digits: int = 4) -> dict[str, Any]:
        """`as_dict` with so many digits of each number: further ones depend on the processor."""
        return {name: _rounded(value, digits) for name, value in self.as_dict().items()}


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {name: _rounded(inner, digits) for name, inner in value.items()}
    return [_rounded(inner, digits) for inner in value] if isinstance(value, list | tuple) else value
