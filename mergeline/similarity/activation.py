"""Activation space: how units of several models respond together to the same inputs (MuDSC section 3.2)."""

from __future__ import annotations

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


@dataclass
class Moments:
    """Running mean [units] and sum of centred products [units, units], float64, over `count` samples.

    Batches are centred before they are added (Chan et al. 1979), so a large mean costs no precision and a constant
    unit has variance 0 exactly.
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    products: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))

    def update(self, samples: Tensor) -> None:
        """Add samples [count, units]; NaN and Inf count as 0. Products are computed in float32, summed in float64."""
        if not len(samples):
            return
        centred, batch_mean = _centred(samples.float())
        if not batch_mean.isfinite().all():
            centred, batch_mean = _centred(samples.float().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
        batch_products = gram(centred.T).double()
        if self.count == 0:
            self.count, self.mean, self.products = len(samples), batch_mean, batch_products
            return
        total = self.count + len(samples)
        shift = batch_mean - self.mean
        self.products += batch_products + torch.outer(shift, shift) * (self.count * len(samples) / total)
        self.mean += shift * (len(samples) / total)
        self.count = total

    def correlation(self) -> Tensor:
        """Population Pearson correlation of all units, float32 [units, units]."""
        if self.count == 0:
            raise InputError("activation similarity: no samples were collected; give at least one calibration batch")
        covariance = self.products / self.count
        deviation = covariance.diagonal().clamp_min(0).sqrt()
        return correlation(covariance, deviation, deviation).float()


def _centred(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Samples less their mean, exactly 0 where a unit is constant, and the mean, float64."""
    centred = samples - samples[0]
    mean = centred.mean(dim=0)
    centred -= mean
    return centred, samples[0].double() + mean.double()


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
    states = [module.state_dict() for module in modules]
    for number, state in enumerate(states):
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        symmetry.check_shapes(f"model {number}", shapes, units_only=True)
    for batch in batches:
        inputs = model_inputs(batch)
        observed = [tap.observe(state, inputs) for state in states]
        for site in tap.sites:
            # units first, as images come: laid out the other way, this copy takes several times as long
            moments[site.group].update(torch.cat([samples[site].T for samples in observed]).T)
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
