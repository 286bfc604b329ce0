"""Small programs with named parameters, and what permuting those parameters does to them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.export import Dim

from mergeline.symmetry.derive import derive_symmetry
from mergeline.symmetry.permute import permute_tensor
from mergeline.symmetry.symmetry import Symmetry

Body = Callable[..., Tensor]
LETTERS = "abcdefgh"


class Program(nn.Module):
    """`body(parameters, *inputs)`, where the parameters are attributes of the first argument; reads the result.

    The body's result [n, a, b, ...] is contracted with one more parameter `v` [a, b, ...] to the output [n].
    """

    def __init__(self, body: Body, shapes: Mapping[str, Sequence[int]], inputs: Sequence[Tensor], seed: int) -> None:
        super().__init__()
        self.body = body
        self.generator = torch.Generator().manual_seed(seed)
        for name, shape in shapes.items():
            self._add(name, shape)
        self._add("v", self.body(self, *inputs).shape[1:])

    def _add(self, name: str, shape: Sequence[int]) -> None:
        values = torch.randn(tuple(shape), generator=self.generator, dtype=torch.float64)
        self.register_parameter(name, nn.Parameter(values.float(), requires_grad=False))

    def forward(self, *inputs: Tensor) -> Tensor:
        return readout(self.body(self, *inputs), self.get_parameter("v"))

    def run(self, tensors: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """The output for other values of the parameters, in their precision, without the machinery of modules."""
        return readout(self.result(tensors, inputs), tensors["v"])

    def result(self, tensors: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """What is read for the output."""
        return self.body(SimpleNamespace(**tensors), *inputs)

    def doubles(self) -> dict[str, Tensor]:
        """The parameters in float64."""
        return {name: tensor.double() for name, tensor in self.state_dict().items()}


@dataclass(frozen=True)
class Case:
    """A program that uses an operation, and what is known of its symmetry."""

    body: Body
    shapes: Mapping[str, Sequence[int]]
    inputs: Sequence[Sequence[int]] = ((5, 2),)
    fixed: frozenset[str] = frozenset()
    """Parameters whose first axis meets an input: brute force need not move it."""
    order: int | None = None
    """Order of the group, where brute force cannot tell it (an axis whose order depends on another axis)."""
    smaller: str = ""
    """Why fewer permutations are found than there are; soundness is all that is asked then."""
    ids: int = 0
    """Where not 0, the inputs are integers below this."""
    structured: Case | None = None
    """The same operation on operands whose units come in segments, or differently for each unit of another axis."""

    def make(self, seed: int = 0) -> tuple[Program, tuple[Tensor, ...]]:
        """The program and inputs for it."""
        generator = torch.Generator().manual_seed(seed + 1000)
        shapes = [tuple(shape) for shape in self.inputs]
        if self.ids:
            inputs = tuple(torch.randint(self.ids, shape, generator=generator) for shape in shapes)
        else:
            inputs = tuple(torch.randn(shape, generator=generator) for shape in shapes)
        return Program(self.body, self.shapes, inputs, seed), inputs


def derive_fast(program: Program, inputs: tuple[Tensor, ...]) -> Symmetry:
    """The symmetry from a trace for the batch size at hand, which takes a fifth of the time of one for any.

    Nothing is verified: that is left to the caller.
    """
    with patch("mergeline.symmetry.trace.Dim", SimpleNamespace(AUTO=Dim.STATIC)):
        return derive_symmetry(program, inputs, verify=False)


def operand(x: Tensor, weight: Tensor) -> Tensor:
    """x [n, i], weight [i, a, b, ...] -> [n, a, b, ...]: all axes but the first carry units of the weight alone."""
    axes = LETTERS[: weight.ndim - 1]
    return torch.einsum(f"nx,x{axes}->n{axes}", x, weight)


def readout(result: Tensor, weight: Tensor) -> Tensor:
    """result [n, a, b, ...], weight [a, b, ...] -> [n]."""
    axes = LETTERS[: weight.ndim]
    return torch.einsum(f"n{axes},{axes}->n", result.to(weight.dtype), weight)


def on(*operands: Sequence[int], do: Callable[..., Tensor], smaller: str = "") -> Case:
    """A case that applies `do` to tensors [n, *operand] full of free units, and reads everything that comes out."""
    shapes = {f"w{number}": (2, *shape) for number, shape in enumerate(operands)}
    stacked = {name: (shape[1], 2, *shape[2:]) if len(shape) > 2 else shape for name, shape in shapes.items()}

    def body(parameters: object, x: Tensor) -> Tensor:
        return do(*(operand(x, getattr(parameters, name)) for name in shapes))

    def structured_body(parameters: object, x: Tensor) -> Tensor:
        return do(*(structured_operand(x, getattr(parameters, name)) for name in shapes))

    case = Case(body, shapes, fixed=frozenset(shapes), smaller=smaller)
    return replace(case, structured=Case(structured_body, stacked, smaller="only asked whether it is sound"))


def structured_operand(x: Tensor, weight: Tensor) -> Tensor:
    """The result of `operand` with more structure.

    x [n, i], weight [a, i, b, ...] -> [n, a, b, ...] with an order of b for each unit of a; or weight [i, a] -> [n, a]
    in two segments.
    """
    if weight.ndim > 2:
        axes = LETTERS[: weight.ndim - 1]
        return torch.einsum(f"nx,{axes[0]}x{axes[1:]}->n{axes}", x, weight)
    t = x @ weight
    half = t.shape[1] // 2
    return torch.cat([t[:, :half].sin(), t[:, half:].cos()], 1)


def elements(symmetry: Symmetry, limit: int, seed: int = 0) -> Iterator[dict[str, Tensor]]:
    """All permutations that the symmetry allows where they are at most `limit`, otherwise as many random ones."""
    identity = symmetry.identity()
    generator = torch.Generator().manual_seed(seed)
    if symmetry.log10_order() > math.log10(limit):
        for _ in range(limit):
            yield {
                name: torch.argsort(torch.rand(rows.shape, generator=generator), dim=-1)
                for name, rows in identity.items()
            }
        return
    copies = [(name, symmetry.copies(name)) for name in identity]
    orders = {size: list(itertools.permutations(range(size))) for size in symmetry.sizes.values()}
    choices = [orders[symmetry.sizes[name]] for name, count in copies for _ in range(count)]
    for choice in itertools.product(*choices):
        remaining = iter(choice)
        yield {
            name: torch.tensor([next(remaining) for _ in range(count)]).reshape(identity[name].shape)
            for name, count in copies
        }


def permuted(
    tensors: Mapping[str, Tensor], symmetry: Symmetry, permutations: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors in another order of their units."""
    moved = dict(tensors)
    for name, layout in symmetry.parameters.items():
        moved[name] = permute_tensor(tensors[name], layout, symmetry, permutations)
        moved.update(dict.fromkeys(layout.tied, moved[name]))
    return moved


def largest_change(
    program: Program, inputs: Sequence[Tensor], symmetry: Symmetry, limit: int = 40, seed: int = 0
) -> float:
    """Largest relative change of the output under the permutations that the symmetry allows, in float64."""
    tensors, inputs = program.doubles(), [x.double() if x.is_floating_point() else x for x in inputs]
    before = program.run(tensors, inputs)
    scale = before.abs().max().clamp_min(1e-9)
    return max(
        float((program.run(permuted(tensors, symmetry, element), inputs) - before).abs().max() / scale)
        for element in elements(symmetry, limit, seed)
    )


def count_by_brute_force(program: Program, inputs: Sequence[Tensor], fixed: frozenset[str], limit: int = 2000) -> int:
    """How many ways there are to permute every axis of every parameter that keep the output.

    The values of `v` are generic, so the output is kept where the permutation of v undoes that of the result.
    """
    tensors, inputs = program.doubles(), [x.double() if x.is_floating_point() else x for x in inputs]
    result = program.result(tensors, inputs).double()
    wanted = torch.stack([order_axes(result, orders, first=1) for orders in axis_orders(result.shape[1:])])
    axes = [
        (name, axis)
        for name in program.doubles()
        if name != "v"
        for axis in range(1 if name in fixed else 0, tensors[name].ndim)
    ]
    candidates = axis_orders([tensors[name].shape[axis] for name, axis in axes])
    if len(candidates) > limit:
        raise ValueError(f"{len(candidates)} permutations are too many to try")
    tolerance = 1e-9 * float(result.abs().max())
    kept = 0
    for orders in candidates:
        moved = dict(tensors)
        for (name, axis), order in zip(axes, orders, strict=True):
            moved[name] = moved[name].index_select(axis, order)
        apart = (program.result(moved, inputs).double() - wanted).flatten(1).abs()
        kept += int((apart.amax(1) <= tolerance).sum())
    return kept


def axis_orders(sizes: Sequence[int]) -> list[tuple[Tensor, ...]]:
    """All choices of one permutation for each axis."""
    orders = [[torch.tensor(order) for order in itertools.permutations(range(size))] for size in sizes]
    return list(itertools.product(*orders))


def order_axes(tensor: Tensor, orders: Sequence[Tensor], first: int) -> Tensor:
    """The tensor with its axes from `first` on in these orders."""
    for axis, order in enumerate(orders, start=first):
        tensor = tensor.index_select(axis, order)
    return tensor
