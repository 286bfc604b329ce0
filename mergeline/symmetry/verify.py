"""Prove a symmetry numerically: permute at random and see that the outputs stay."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mergeline.errors import InputError
from mergeline.symmetry.permute import permute_tensor
from mergeline.symmetry.symmetry import Symmetry

TOLERANCE = 1e-4
"""Relative output change that float32 arithmetic inside a module may cause; a wrong entry causes more than 1e-3."""


def output_change(
    symmetry: Symmetry,
    module: nn.Module,
    example_inputs: Sequence[Tensor],
    *,
    seed: int = 0,
    only: Sequence[str] | None = None,
) -> float:
    """Largest relative change of any output when all families (or those in `only`) are permuted at random.

    Runs a float64 copy in eval mode with random parameters and buffers: fresh initialisations (zero biases, unit
    statistics) would hide faults. The module itself is left as it is.
    """
    probe = copy.deepcopy(module).eval().double()
    _randomise(probe, seed)
    inputs = [x.double() if x.is_floating_point() else x for x in example_inputs]
    state = {name: tensor.clone() for name, tensor in probe.state_dict().items()}
    symmetry.check_shapes(type(module).__name__, {name: tuple(tensor.shape) for name, tensor in state.items()})
    with torch.no_grad():
        before = [output.clone() for output in _tensors(probe(*inputs))]
        permutations = symmetry.random_permutations(seed, only)
        for name, layout in symmetry.parameters.items():
            state[name] = permute_tensor(state[name], layout, symmetry, permutations)
            state.update(dict.fromkeys(layout.tied, state[name]))
        probe.load_state_dict(state)
        after = _tensors(probe(*inputs))
    return max(_relative_change(x, y) for x, y in zip(before, after, strict=True))


def require_sound(symmetry: Symmetry, module: nn.Module, example_inputs: Sequence[Tensor], seed: int = 0) -> None:
    """Raise InputError, naming the families at fault, unless permuting leaves the outputs as they are."""
    if output_change(symmetry, module, example_inputs, seed=seed) <= TOLERANCE:
        return
    changes = {
        family: output_change(symmetry, module, example_inputs, seed=seed, only=[family])
        for family in symmetry.families
    }
    faulty = {family: change for family, change in changes.items() if change > TOLERANCE}
    listing = "; ".join(
        f"'{family}' changes the output by {change:.1e} (tensors: {', '.join(_members(symmetry, family))})"
        for family, change in faulty.items()
    )
    raise InputError(f"symmetry of {type(module).__name__}: not a symmetry of the model: {listing or 'all together'}")


def _members(symmetry: Symmetry, family: str) -> list[str]:
    groups = [group for group in symmetry.groups.values() if family in group.structure]
    return sorted({axis.param for group in groups for axis in group.axes})


def _randomise(module: nn.Module, seed: int) -> None:
    """Random values for every floating tensor, scaled so that deep networks keep finite outputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict(keep_vars=True).items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif tensor.ndim >= 2:
                fan_in = max(1, math.prod(tensor.shape[1:]))
                tensor.copy_(noise * min(0.5, 1.5 / math.sqrt(fan_in)) + tensor / 2)
            else:
                tensor.copy_(tensor + 0.3 * noise)


def _tensors(outputs: object) -> list[Tensor]:
    """Floating tensors in the output of a module, whatever containers they are in."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if isinstance(outputs, tuple | list):
        return [tensor for item in outputs for tensor in _tensors(item)]
    return []


def _relative_change(before: Tensor, after: Tensor) -> float:
    if not torch.isfinite(before).all():
        raise InputError("symmetry: the module gives NaN or Inf on random parameters, so nothing can be verified")
    return float((before - after).abs().max() / before.abs().max().clamp_min(1e-12))
