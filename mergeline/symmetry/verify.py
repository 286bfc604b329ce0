"""Prove a symmetry numerically: permute at random and see that the outputs stay."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from mergeline.errors import InputError
from mergeline.symmetry.permute import Permutations, permute_tensor
from mergeline.symmetry.symmetry import Symmetry
from mergeline.symmetry.trace import Inputs, arguments, output_tensors, tensors_of

TOLERANCE = 1e-4
"""Relative output change that float32 arithmetic inside a module may cause; a wrong entry causes more than 1e-3."""

FEW = 5000
"""Families with fewer derangements than this may move alike by chance, which hides faults: they also move alone."""

SMALL = 1_000_000
"""In modules with at most so many numbers every family also moves alone: it takes no time."""

ATTEMPTS = 5
"""How many random parameters are tried until the outputs tell something."""


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
    return max(probe.change(families) for families in _trials(symmetry, probe.numbers))


def family_changes(symmetry: Symmetry, module: nn.Module, example_inputs: Inputs, *, seed: int = 0) -> dict[str, float]:
    """The same for every family alone: {family: largest relative change}."""
    probe = _Probe(symmetry, module, example_inputs, seed)
    return {family: probe.change([family]) for family in symmetry.families}


def require_sound(symmetry: Symmetry, module: nn.Module, example_inputs: Inputs, seed: int = 0) -> None:
    """Raise InputError, naming the families at fault, unless permuting leaves the outputs as they are."""
    probe = _Probe(symmetry, module, example_inputs, seed)
    if all(probe.change(families) <= TOLERANCE for families in _trials(symmetry, probe.numbers)):
        return
    if probe.is_random():
        raise InputError(f"{probe.name}: its outputs differ from run to run, so nothing can be verified")
    changes = {family: probe.change([family]) for family in symmetry.families}
    listing = "; ".join(
        f"'{family}' changes the output by {change:.1e} ({_whereabouts(symmetry, family)})"
        for family, change in changes.items()
        if change > TOLERANCE
    )
    raise InputError(f"{probe.name}: not a symmetry of the model: {listing or 'all together'}")


def _trials(symmetry: Symmetry, numbers: int) -> Iterator[list[str]]:
    """Families to permute together: all of them, then one by one where that tells more, or costs nothing."""
    yield list(symmetry.families)
    for name, family in symmetry.families.items():
        derangements = symmetry.copies(name) * math.lgamma(family.size)  # a logarithm, and a lower bound
        if numbers <= SMALL or derangements < math.log(FEW):
            yield [name]


class _Probe:
    """A randomised copy of a module, and what it gives for the example inputs."""

    def __init__(self, symmetry: Symmetry, module: nn.Module, example_inputs: Inputs, seed: int) -> None:
        self.name = f"symmetry of {type(module).__name__}"
        state = tensors_of(module)
        symmetry.check_shapes(type(module).__name__, {name: tuple(tensor.shape) for name, tensor in state.items()})
        if any(tensor.device.type == "meta" for tensor in state.values()):
            raise InputError(f"{self.name}: there are no numbers on the meta device to verify with")
        self.numbers = sum(tensor.numel() for tensor in state.values())
        self.seed = seed
        self.symmetry = symmetry
        self.layouts = {alias: layout for name, layout in symmetry.parameters.items() for alias in (name, *layout.tied)}
        self.source = module
        self.module = _copy(module).eval()
        self.inputs = example_inputs
        try:
            self._start(torch.float64)
        except RuntimeError:  # a dtype is written into the module's code
            self._start(torch.float32)

    def _start(self, dtype: torch.dtype) -> None:
        """Compute the reference outputs.

        Where they are not finite, weaker noise is tried; where classes are given and all inputs are put into one,
        which would prove nothing, other noise.
        """
        self.module = self.module.double() if dtype is torch.float64 else self.module.float()
        self.inputs = tree_map(lambda x: _as_dtype(x, dtype), self.inputs)
        finite = False
        for strength, attempt in product((1.0, 0.1), range(ATTEMPTS)):
            self.module.load_state_dict(self.source.state_dict())
            _randomise(self.module, self.seed + attempt, strength)
            self.state = {name: tensor.detach().clone() for name, tensor in tensors_of(self.module).items()}
            self.reference = [output.clone() for output in self._outputs()]
            finite = all(torch.isfinite(output).all() for output in self.reference)
            if finite and all(map(_tells, self.reference)):
                return
        if not finite:
            raise InputError(f"{self.name}: NaN or Inf on random parameters, so nothing can be verified")

    def _outputs(self) -> list[Tensor]:
        args, kwargs = arguments(self.inputs)
        with torch.no_grad():
            return output_tensors(self.module(*args, **kwargs))

    def is_random(self) -> bool:
        """Whether the outputs differ from one run to the next."""
        return self.change([]) > TOLERANCE

    def change(self, families: Sequence[str]) -> float:
        """Largest relative change of any output when these families are permuted at random."""
        permutations = self.symmetry.random_permutations(self.seed, families)
        with torch.no_grad():
            for name, target in tensors_of(self.module).items():
                target.copy_(self._permuted(name, permutations))
        return max((_relative_change(x, y) for x, y in zip(self.reference, self._outputs(), strict=True)), default=0.0)

    def _permuted(self, name: str, permutations: Permutations) -> Tensor:
        tensor, layout = self.state[name], self.layouts.get(name)
        return tensor if layout is None else permute_tensor(tensor, layout, self.symmetry, permutations)


def _whereabouts(symmetry: Symmetry, family: str) -> str:
    """Tensors and operations of the trace that deal with the units of a family."""
    groups = [group for group in symmetry.groups.values() if family in group.structure]
    tensors = sorted({axis.param for group in groups for axis in group.axes})
    names = {group.name for group in groups}
    nodes = list(dict.fromkeys(site.at for site in symmetry.sites if site.group in names))
    return f"tensors: {', '.join(tensors)}" + (f"; operations: {', '.join(nodes)}" if nodes else "")


def _tells(output: Tensor) -> bool:
    """Whether an output differs from place to place, if it consists of classes or truth values."""
    return output.is_floating_point() or output.is_complex() or output.numel() < 2 or len(output.unique()) > 1


def _copy(module: nn.Module) -> nn.Module:
    """A deep copy, also where the module keeps tensors that were computed with gradients."""
    attributes = [value for child in module.modules() for value in vars(child).values()]
    kept = [x for x in tree_leaves(attributes) if isinstance(x, Tensor) and not x.is_leaf]
    return copy.deepcopy(module, {id(x): x.detach() for x in kept})


def _as_dtype(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x


def _randomise(module: nn.Module, seed: int, strength: float) -> None:
    """Random values for all tensors but integers, scaled so that deep networks keep finite outputs.

    What is positive everywhere (variances, scales) stays so: a root or a logarithm may be taken of it. It is not left
    near zero, as LayerScale starts: a branch that adds next to nothing hides every fault in it.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in tensors_of(module).values():
            if tensor.is_complex():
                tensor = torch.view_as_real(tensor)
            if not tensor.is_floating_point():
                continue
            noise = strength * torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
            if (tensor > 0).all():
                tensor.clamp_(min=0.5).mul_((0.3 * noise).exp())
            elif tensor.ndim >= 2:
                fan_in = max(1, math.prod(tensor.shape[1:]))
                tensor.copy_(noise * min(0.5, 1.5 / math.sqrt(fan_in)) + tensor / 2)
            else:
                tensor.add_(0.3 * noise)


def _relative_change(before: Tensor, after: Tensor) -> float:
    if not before.numel():
        return 0.0
    before, after = (x if x.is_complex() else x.double() for x in (before, after))
    return float((before - after).abs().max() / before.abs().max().clamp_min(1e-12))
