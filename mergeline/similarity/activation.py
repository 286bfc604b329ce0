"""Activation space: how units of several models respond together to the same inputs (MuDSC section 3.2)."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mergeline.errors import InputError
from mergeline.similarity.correlation import correlation, gram
from mergeline.symmetry.symmetry import Symmetry
from mergeline.symmetry.tap import Consumers, Tap, choose_sites, model_inputs
from mergeline.symmetry.units import units_apart

AT_ONCE = 1 << 20
"""How many numbers are centred and multiplied at once."""

SUMMED_IN_FLOAT32 = 4096
"""How many samples: sums over more lose digits where there are few units."""


@dataclass
class Moments:
    """Running mean [units] and sum of centred products [units, units], float64, over `count` samples.

    A large mean costs no precision, and a constant unit has variance 0 exactly.
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    products: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))

    def update(self, samples: Tensor) -> None:
        """Add samples [count, units]; NaN and Inf count as 0. Products are computed in float32, summed in float64."""
        self.update_parts([samples.T], 1, Scratch())

    def update_parts(self, parts: Sequence[Tensor], unit_dims: int, scratch: Scratch) -> None:
        """Add the samples of all units, part by part: each [units in `unit_dims` dimensions..., samples...].

        They are read once, into `scratch`, a piece at a time, and centred, so that a large mean costs no precision.
        """
        count = parts[0].numel() // math.prod(parts[0].shape[:unit_dims])
        if not count:
            return
        units = sum(math.prod(part.shape[:unit_dims]) for part in parts)
        positions = math.prod(parts[0].shape[unit_dims + 1 :])
        by_unit = parts[0].stride(unit_dims - 1) != 1
        step = max(1, AT_ONCE // (units * positions))
        for some in zip(*(part.split(step, dim=unit_dims) for part in parts), strict=True):
            samples = scratch.rows(units, some[0].shape[unit_dims] * positions, by_unit, some[0].device)
            self._add_samples(some, unit_dims, samples)

    def _add_samples(self, parts: Sequence[Tensor], unit_dims: int, samples: Tensor) -> None:
        """Add few enough samples to stay in the cache while they are centred, in `samples`, and multiplied."""
        first = torch.cat([_first(part, unit_dims) for part in parts])
        _subtract(parts, unit_dims, first, samples)
        mean = samples.mean(dim=1)
        if not mean.isfinite().all():
            zeroed = [part.float().nan_to_num(0.0, 0.0, 0.0) for part in parts]
            _subtract(zeroed, unit_dims, first, samples)
            mean = samples.mean(dim=1)
        samples -= mean[:, None]
        products = torch.zeros(len(first), len(first), dtype=torch.float64, device=samples.device)
        for piece in samples.split(SUMMED_IN_FLOAT32, dim=1):
            products += gram(piece)
        self._add(samples.shape[1], first.double() + mean.double(), products)

    def _add(self, count: int, mean: Tensor, products: Tensor) -> None:
        """Add the moments of other samples (Chan et al. 1979)."""
        if self.count == 0:
            self.count, self.mean, self.products = count, mean, products
            return
        total = self.count + count
        shift = mean - self.mean
        self.products += products.addr_(shift, shift, alpha=self.count * count / total)
        self.mean += shift * (count / total)
        self.count = total

    def correlation(self) -> Tensor:
        """Population Pearson correlation of all units, float32 [units, units]."""
        if self.count == 0:
            raise InputError("activation similarity: no samples were collected; give at least one calibration batch")
        covariance = self.products / self.count
        deviation = covariance.diagonal().clamp_min(0).sqrt()
        return correlation(covariance, deviation, deviation).float()


class Scratch:
    """Memory for the samples of one group after the other: fresh memory takes several times as long to write."""

    def __init__(self) -> None:
        self._space = torch.empty(0)

    def rows(self, units: int, samples: int, by_unit: bool, device: torch.device) -> Tensor:
        """Uninitialised float32 [units, samples]; either lies close together in memory. The last one is lost."""
        if self._space.numel() < units * samples or self._space.device != device:
            self._space = torch.empty(units * samples, device=device)
        space = self._space[: units * samples]
        return space.view(units, samples) if by_unit else space.view(samples, units).T


def _first(part: Tensor, unit_dims: int) -> Tensor:
    """The first sample of each unit, float32 [units]: less this, a constant unit is exactly 0."""
    while part.ndim > unit_dims:
        part = part.select(-1, 0)
    return part.flatten().float().nan_to_num(0.0, 0.0, 0.0)


def _subtract(parts: Sequence[Tensor], unit_dims: int, shift: Tensor, out: Tensor) -> None:
    """The samples of all units less their shift, float32 [units, samples]."""
    start = 0
    for part in parts:
        units, samples = part.shape[:unit_dims], part.shape[unit_dims:]
        place = slice(start, start + math.prod(units))
        own = shift[place].reshape(*units, *(1 for _ in samples))
        torch.sub(
            part if part.is_floating_point() else part.float(),
            own,
            out=out[place].unflatten(0, units).unflatten(unit_dims, samples),
        )
        start = place.stop


def activation_moments(
    modules: Sequence[nn.Module], symmetry: Symmetry, batches: Iterable[Any], *, consumers: Consumers = "last"
) -> dict[str, Moments]:
    """Moments of every observed group over all units of all modules, in one pass, keeping no activations.

    modules: n models of the same architecture, model 0 first; they are run in eval mode and left as they were.
    batches: inputs, tuples whose first item is the input, or mappings of named inputs, of any batch size.
    consumers: observe what the last operation that reads a group reads, or what all of them read; a group that is
    observed several times adds each as more samples.
    Returns {group: Moments over [n * units]}. Raises InputError where the modules do not fit the symmetry.
    """
    if not modules:
        raise InputError("activation similarity: there are no models")
    moments: dict[str, Moments] = defaultdict(Moments)
    tap = Tap(modules[0], symmetry, choose_sites(symmetry, consumers))
    states, scratch = [module.state_dict() for module in modules], Scratch()
    for number, state in enumerate(states):
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        symmetry.check_shapes(f"model {number}", shapes, units_only=True)

    def add(node: str, value: Tensor) -> None:
        """The activations of all models at one operation: the last model's, and what was kept of the others."""
        values = [*(kept.pop(node) for kept in others), value]
        for site in (site for site in tap.sites if site.node == node):
            for span in tap.spans[site]:
                parts = [units_apart(part, span, symmetry.sizes) for part in values]
                moments[site.group].update_parts(parts, len(span.path), scratch)

    for batch in batches:
        inputs = model_inputs(batch)
        others = [tap.run(state, inputs) for state in states[:-1]]
        tap.run(states[-1], inputs, take=add)
    if tap.sites and not any(entry.count for entry in moments.values()):
        raise InputError("activation similarity: no samples were collected; give at least one calibration batch")
    return dict(moments)


def activation_similarity(
    modules: Sequence[nn.Module], symmetry: Symmetry, batches: Iterable[Any], *, consumers: Consumers = "last"
) -> dict[str, Tensor]:
    """Correlation of the units of all modules on the calibration batches, {group: float32 [n * units, n * units]}."""
    return correlations(activation_moments(modules, symmetry, batches, consumers=consumers), len(modules))


def correlations(moments: Mapping[str, Moments], models: int) -> dict[str, Tensor]:
    """Correlation of all units of each group, float32; warns where a group has fewer samples than units."""
    for group, entry in moments.items():
        units = len(entry.mean) // models
        if entry.count < units:
            warnings.warn(
                f"activation similarity of '{group}': {entry.count} samples for {units} units cannot tell them apart "
                "well; give more calibration data",
                stacklevel=2,
            )
    similarity = {name: entry.correlation() for name, entry in moments.items()}
    for name, table in similarity.items():
        if not table.isfinite().all():
            raise InputError(
                f"activation similarity of '{name}' holds NaN or Inf: activations are too large for float32"
            )
    return similarity


def stack_moments(moments: Mapping[str, Moments]) -> dict[str, Tensor]:
    """Moments as named tensors, for a safetensors file."""
    return {
        f"{group}/{name}": tensor
        for group, entry in moments.items()
        for name, tensor in (
            ("count", torch.tensor(entry.count)),
            ("mean", entry.mean),
            ("products", entry.products),
        )
    }


def unstack_moments(tensors: Mapping[str, Tensor]) -> dict[str, Moments]:
    """The inverse of `stack_moments`."""
    groups = sorted({name.rpartition("/")[0] for name in tensors})
    return {
        group: Moments(int(tensors[f"{group}/count"]), tensors[f"{group}/mean"], tensors[f"{group}/products"])
        for group in groups
    }
