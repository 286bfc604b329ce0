"""Prove a symmetry numerically: permute at random and see that the outputs stay."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mergeline.errors import InputError
from mergeline.symmetry.permute import Permutations, permute_tensor
from mergeline.symmetry.symmetry import Symmetry
from mergeline.symmetry.trace import Inputs, arguments

TOLERANCE = 1e-4
"""Relative output change that float32 arithmetic inside a module may cause; a wrong entry causes more than 1e-3."""

FEW = 5000
"""Families with fewer derangements than this may move alike by chance: they are also moved in different halves."""


def output_change(
    symmetry: Symmetry,
    module: nn.Module,
    example_inputs: Inputs,
    *,
    seed: int = 0,
    only: Sequence[str] | None = None,
) -> float:
    """Largest relative change of any output when all families (or those in `only`) are permuted at random.

    Runs a copy in eval mode with random parameters and buffers: fresh initialisations (zero biases, unit statistics)
    would hide faults. It computes in float64, or in float32 where the module insists. The module itself is left as it
    is. Raises InputError where the module does not have the symmetry's tensors or gives no finite outputs.
    """
    probe = _Probe(symmetry, module, example_inputs, seed)
    if only is not None:
        return probe.change(only)
    return max(probe.change(families) for families in _joint_trials(symmetry))


def family_changes(symmetry: Symmetry, module: nn.Module, example_inputs: Inputs, *, seed: int = 0) -> dict[str, float]:
    """The same for every family alone: {family: largest relative change}."""
    probe = _Probe(symmetry, module, example_inputs, seed)
    return {family: probe.change([family]) for family in symmetry.families}


def require_sound(symmetry: Symmetry, module: nn.Module, example_inputs: Inputs, seed: int = 0) -> None:
    """Raise InputError, naming the families at fault, unless permuting leaves the outputs as they are."""
    probe = _Probe(symmetry, module, example_inputs, seed)
    if all(probe.change(families) <= TOLERANCE for families in _joint_trials(symmetry)):
        return
    changes = {family: probe.change([family]) for family in symmetry.families}
    listing = "; ".join(
        f"'{family}' changes the output by {change:.1e} ({_whereabouts(symmetry, family)})"
        for family, change in changes.items()
        if change > TOLERANCE
    )
    raise InputError(f"symmetry of {type(module).__name__}: not a symmetry of the model: {listing or 'all together'}")


def _joint_trials(symmetry: Symmetry) -> Iterator[list[str]]:
    """All families at once; then such halves of the small ones that any two of them are once in different halves."""
    yield list(symmetry.families)
    small = [
        name
        for name, family in symmetry.families.items()
        if symmetry.copies(name) * math.lgamma(family.size) < math.log(FEW)
    ]
    for bit in range((len(small) - 1).bit_length()):
        yield [name for number, name in enumerate(small) if number >> bit & 1]


class _Probe:
    """A randomised copy of a module, and what it gives for the example inputs."""

    def __init__(self, symmetry: Symmetry, module: nn.Module, example_inputs: Inputs, seed: int) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        symmetry.check_shapes(type(module).__name__, shapes)
        if any(tensor.device.type == "meta" for tensor in module.state_dict().values()):
            raise InputError(
                f"symmetry of {type(module).__name__}: there are no numbers on the meta device to verify with"
            )
        self.symmetry = symmetry
        self.seed = seed
        self.module = copy.deepcopy(module).eval()
        self.inputs = example_inputs
        try:
            self._start(torch.float64)
        except RuntimeError:  # a dtype is written into the module's code
            self._start(torch.float32)

    def _start(self, dtype: torch.dtype) -> None:
        self.module.to(dtype)
        self.inputs = tree_map(lambda x: _as_dtype(x, dtype), self.inputs)
        _randomise(self.module, self.seed)
        self.state = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}
        self.reference = [output.clone() for output in self._outputs()]
        if not all(torch.isfinite(output).all() for output in self.reference):
            name = type(self.module).__name__
            raise InputError(f"symmetry of {name}: NaN or Inf on random parameters, so nothing can be verified")

    def _outputs(self) -> list[Tensor]:
        args, kwargs = arguments(self.inputs)
        with torch.no_grad():
            return list(_floating(self.module(*args, **kwargs)))

    def change(self, families: Sequence[str]) -> float:
        """Largest relative change of any output when these families are permuted at random."""
        permutations = self.symmetry.random_permutations(self.seed, families)
        self.module.load_state_dict(self._permuted(permutations))
        return max((_relative_change(x, y) for x, y in zip(self.reference, self._outputs(), strict=True)), default=0.0)

    def _permuted(self, permutations: Permutations) -> dict[str, Tensor]:
        state = dict(self.state)
        for name, layout in self.symmetry.parameters.items():
            tensor = permute_tensor(self.state[name], layout, self.symmetry, permutations)
            state.update(dict.fromkeys((name, *layout.tied), tensor))
        return state


def _whereabouts(symmetry: Symmetry, family: str) -> str:
    """Tensors and operations of the trace that deal with the units of a family."""
    groups = [group for group in symmetry.groups.values() if family in group.structure]
    tensors = sorted({axis.param for group in groups for axis in group.axes})
    names = {group.name for group in groups}
    nodes = list(dict.fromkeys(site.at for site in symmetry.sites if site.group in names))
    return f"tensors: {', '.join(tensors)}" + (f"; operations: {', '.join(nodes)}" if nodes else "")


def _as_dtype(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x


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


def _floating(outputs: object) -> Iterator[Tensor]:
    """Floating tensors in the output of a module, whatever containers they are in."""
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            yield outputs
    elif isinstance(outputs, Mapping):
        yield from _floating(list(outputs.values()))
    elif isinstance(outputs, tuple | list):
        for item in outputs:
            yield from _floating(item)


def _relative_change(before: Tensor, after: Tensor) -> float:
    return float((before - after).abs().max() / before.abs().max().clamp_min(1e-12)) if before.numel() else 0.0
