"""A randomised copy of a module, to see what permuting its tensors does to the outputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from mergeline.errors import InputError, nearest
from mergeline.symmetry.change import is_continuous, is_lost, is_unsteady, relative_change, scale_of, tells
from mergeline.symmetry.layout import families_of, width
from mergeline.symmetry.permute import Permutations, permute_tensor
from mergeline.symmetry.symmetry import ELEMENTWISE, Symmetry
from mergeline.symmetry.trace import Inputs, arguments, output_tensors, tensors_of

SMALL = 1_000_000
"""In modules with at most so many numbers many more runs take no time."""

ATTEMPTS = 5
"""How many random parameters are tried until the outputs depend on every tensor."""

FAINT = 1e-3
"""A tensor to which the outputs respond less, relative to their own variation, is silent."""


class Probe:
    """What a copy of a module gives for the example inputs, in eval mode, with random parameters and buffers.

    Fresh initialisations (zero biases, unit statistics) would hide faults. It computes in float64, or in the dtype
    that the module's code insists on. Raises InputError where the module does not have the symmetry's tensors, cannot
    be run, or gives no numbers.
    """

    def __init__(
        self, symmetry: Symmetry, module: nn.Module, example_inputs: Inputs, seed: int, *, listen: bool = False
    ) -> None:
        """listen: try random parameters until the outputs respond to all tensors; `silent` holds the others."""
        self.name = f"symmetry of {type(module).__name__}"
        state = tensors_of(module)
        self._require_tensors(symmetry, {name: tuple(tensor.shape) for name, tensor in state.items()})
        if any(tensor.device.type == "meta" for tensor in state.values()):
            raise InputError(f"{self.name}: there are no numbers on the meta device to verify with")
        self.is_small = sum(tensor.numel() for tensor in state.values()) <= SMALL
        self.seed, self.symmetry, self.source, self.listen = seed, symmetry, module, listen
        self.layouts = {alias: layout for name, layout in symmetry.parameters.items() for alias in (name, *layout.tied)}
        self.silent: set[str] = set()
        self.doubt = ""
        faults = []
        for dtype in (torch.float64, torch.float32, None):
            self.module = _copy(module).eval()
            self.inputs = example_inputs
            if dtype is None:
                self.doubt = "; it runs in its own dtype only, whose rounding may be to blame"
            else:
                self.module = self.module.double() if dtype is torch.float64 else self.module.float()
                self.inputs = tree_map(partial(_as_dtype, dtype=dtype), example_inputs)
            try:
                self._start()
                return
            except InputError:
                raise
            except Exception as fault:  # the module's code may insist on a dtype in any way
                faults.append(fault)
        raise InputError(f"{self.name}: it does not run with random parameters: {faults[-1]}") from faults[-1]

    def _require_tensors(self, symmetry: Symmetry, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, layout in symmetry.parameters.items():
            for own in (name, *layout.tied):
                if own not in shapes:
                    raise InputError(
                        f"{self.name}: it names the tensor '{own}', which the model does not have{nearest(own, shapes)}"
                    )
                told = tuple(width(dim, symmetry.sizes) for dim in layout.dims)
                if shapes[own] != told:
                    raise InputError(
                        f"{self.name}: its dims for '{own}' are {list(told)} long, but the tensor has the shape "
                        f"{list(shapes[own])}: mend them, or the sizes of families"
                    )

    def change(self, families: Sequence[str]) -> float:
        """Largest change of any output, relative to its variation, when these families are permuted at random."""
        permutations = self.symmetry.random_permutations(self.seed, families)
        return self._change({name: self._permuted(name, permutations) for name in self.state})

    def unheard(self) -> list[str]:
        """Families with tensors that make or read their units, to which the outputs hardly respond."""
        return [
            family for family in self.symmetry.families if any(family in self._watched[name] for name in self.silent)
        ]

    def _start(self) -> None:
        """Choose random parameters: finite outputs, that differ from place to place, that respond to every tensor.

        Weaker noise is tried only where the outputs are not finite.
        """
        best, chosen = (math.inf, 0), None
        for strength, attempt in product((1.0, 0.1), range(ATTEMPTS)):
            if strength < 1 and best[0] == 0:
                break
            faults = self._try(self.seed + attempt, strength)
            if faults is not None and faults < best:
                best, chosen = faults, (self.seed + attempt, strength)
            if best == (0, 0):
                return
        if chosen is None:
            raise InputError(f"{self.name}: NaN or Inf on random parameters, so nothing can be verified")
        self._try(*chosen)

    def _try(self, seed: int, strength: float) -> tuple[int, int] | None:
        """Take random parameters: how many outputs are infinite here and there, and how much they leave unseen.

        None where outputs are NaN, unless they are whatever the parameters.
        """
        other = self._run(self._random_state(seed + 1000, strength))
        self.state = self._random_state(seed, strength)
        self.reference = self._run(self.state)
        pairs = list(zip(self.reference, other, strict=True))
        if any(is_lost(x, y) for x, y in pairs):
            return None
        self.scales = [scale_of(x, y) for x, y in pairs]
        self.silent = set(self._silent()) if self.listen else set()
        unseen = sum(not tells(output) for output in self.reference) + len(self.silent)
        return sum(is_unsteady(x, y) for x, y in pairs), unseen

    def _random_state(self, seed: int, strength: float) -> dict[str, Tensor]:
        self.module.load_state_dict(self.source.state_dict())
        randomise(self.module, seed, strength)
        return {name: tensor.detach().clone() for name, tensor in tensors_of(self.module).items()}

    def _run(self, state: dict[str, Tensor]) -> list[Tensor]:
        """The outputs with these tensors."""
        with torch.no_grad():
            for name, target in tensors_of(self.module).items():
                target.copy_(state[name])
            return [output.clone() for output in self._outputs()]

    def _outputs(self) -> list[Tensor]:
        args, kwargs = arguments(self.inputs)
        return output_tensors(self.module(*args, **kwargs))

    def _change(self, state: dict[str, Tensor]) -> float:
        after = self._run({**self.state, **state})
        return max(map(relative_change, self.reference, after, self.scales), default=0.0)

    def _permuted(self, name: str, permutations: Permutations) -> Tensor:
        tensor, layout = self.state[name], self.layouts.get(name)
        return tensor if layout is None else permute_tensor(tensor, layout, self.symmetry, permutations)

    @property
    def _watched(self) -> dict[str, set[str]]:
        """Tensor -> the families whose units it makes or reads."""
        return {
            name: {
                family
                for dim, role in zip(layout.dims, layout.roles, strict=True)
                if role not in ("", ELEMENTWISE)
                for family in families_of(dim)
            }
            for name, layout in self.symmetry.parameters.items()
        }

    def _silent(self) -> Iterator[str]:
        """Tensors that make or read units, but hardly change the outputs.

        Vectors are left out: the bias of keys shifts all scores of a query, which has no effect and does no harm.
        """
        watched = [name for name, families in self._watched.items() if families and self.state[name].ndim > 1]
        for name, response in zip(watched, self._responses(watched), strict=True):
            if response > FAINT:
                continue
            generator = torch.Generator().manual_seed(self.seed)
            order = torch.randperm(self.state[name].numel(), generator=generator)
            shuffled = self.state[name].flatten()[order.to(self.state[name].device)].reshape(self.state[name].shape)
            if not self.is_small or self._change({name: shuffled}) <= FAINT:
                yield name

    def _responses(self, names: Sequence[str]) -> list[float]:
        """How much the outputs change when a tensor does, relative to both, to first order."""
        own = tensors_of(self.module)
        tensors = [own[name].requires_grad_() for name in names]
        try:
            with torch.enable_grad():
                total = torch.stack(list(map(self._projection, self._outputs(), self.scales))).sum()
                gradients: Sequence[Tensor | None] = torch.autograd.grad(total, tensors, allow_unused=True)
        except Exception:  # what cannot be differentiated, in whatever way, does not respond to first order
            gradients = [None] * len(tensors)
        finally:
            self.module.requires_grad_(False)
        return [
            0.0 if gradient is None else float((gradient * self.state[name]).norm())
            for name, gradient in zip(names, gradients, strict=True)
        ]

    def _projection(self, output: Tensor, scale: Tensor) -> Tensor:
        """One number that changes when any element of an output does."""
        if not is_continuous(output):
            return scale.new_zeros(())
        generator = torch.Generator().manual_seed(self.seed)
        weights = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.device) / scale
        output = torch.where(output.isfinite(), output, 0)
        return (weights * (output.real + output.imag if output.is_complex() else output)).sum()


def randomise(module: nn.Module, seed: int, strength: float) -> None:
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


def _copy(module: nn.Module) -> nn.Module:
    """A deep copy without gradients, also of tensors that were computed with them or overlap themselves.

    Attributes that cannot be copied, such as locks, are shared.
    """
    attributes = [value for child in module.modules() for value in vars(child).values()]
    kept = {id(x): x.detach() for x in tree_leaves(attributes) if isinstance(x, Tensor) and not x.is_leaf}
    try:
        copied = copy.deepcopy(module, dict(kept))
    except TypeError:
        shared = {id(value): value for value in attributes if not _can_be_copied(value)}
        copied = copy.deepcopy(module, {**kept, **shared})
    for tensor in tensors_of(copied).values():
        if any(stride == 0 for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if n > 1):
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return copied.requires_grad_(False)


def _can_be_copied(value: Any) -> bool:
    if isinstance(value, dict):  # parameters, buffers, submodules, hooks
        return True
    try:
        copy.deepcopy(value)
    except TypeError:
        return False
    return True


def _as_dtype(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
