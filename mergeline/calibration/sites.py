"""Where a module multiplies by weights: its linear layers, convolutions and normalisations, each with what follows it.

A BatchNorm behind a layer is one affine map with it: it is folded into the weights to solve, and unfolded again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from mergeline.calibration.forms import Convolution, Form, Linear, Scale
from mergeline.calibration.program import Program, is_item, shape_of
from mergeline.symmetry.trace import operation, tensors_of

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Norm:
    """A BatchNorm with running statistics: the names of its tensors."""

    weight: str
    bias: str
    mean: str
    variance: str
    eps: float

    @property
    def names(self) -> tuple[str, ...]:
        """All its tensors."""
        return self.weight, self.bias, self.mean, self.variance

    def scale(self, state: State) -> Tensor:
        """What it multiplies every channel with."""
        return state[self.weight] / (state[self.variance] + self.eps).sqrt()


@dataclass(frozen=True)
class Site:
    """A layer that can be refit. x: its input; output: its value, of the normalisation where one follows.

    A normalisation without a layer in front is a site of its own: then it has no `weight`.
    """

    node: Node
    x: Node
    output: Node
    form: Form
    weight: str | None
    bias: str | None = None
    norm: Norm | None = None

    @property
    def name(self) -> str:
        """Of the layer in the module."""
        named = self.weight or (self.norm.weight if self.norm else "")
        return named.removesuffix(".weight")

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of all tensors that a refit changes."""
        own = [name for name in (self.weight, self.bias) if name is not None]
        return (*own, *(self.norm.names if self.norm else ()))

    @property
    def has_bias(self) -> bool:
        """Whether something can take up a change of the mean."""
        return self.bias is not None or self.norm is not None

    def folded(self, state: State) -> tuple[Tensor, Tensor]:
        """Weight and bias [outputs] of the layer with its normalisation."""
        if self.weight is None:
            assert self.norm is not None
            scale = self.norm.scale(state)
            return scale, state[self.norm.bias] - state[self.norm.mean] * scale
        weight = state[self.weight]
        outputs = weight.shape[self.output_axis]
        bias = state[self.bias] if self.bias else weight.new_zeros(outputs)
        if self.norm is None:
            return weight, bias
        scale = self.norm.scale(state)
        shape = [-1 if axis == self.output_axis else 1 for axis in range(weight.ndim)]
        return weight * scale.reshape(shape), (bias - state[self.norm.mean]) * scale + state[self.norm.bias]

    @property
    def output_axis(self) -> int:
        """The axis of the weight that holds the outputs."""
        return 1 if isinstance(self.form, Linear) and self.form.transposed else 0

    def written(self, program: Program) -> tuple[str, slice]:
        """The tensor of the state dict whose output axis it writes, and which part of that axis."""
        tensor, rows = program.whole(self.tensors[0])
        return tensor, rows if self.output_axis == 0 else slice(None)

    def unfolded(self, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> dict[str, Tensor]:
        """The tensors that make weight and bias. mean, variance [outputs]: of what a normalisation sees, which is what
        the weight gives without bias; of the input where the normalisation is all there is.

        The normalisation gets the statistics of what it now sees, and takes them back by its own scale and shift, so
        that measuring the statistics anew later does what it does for any model.
        """
        own: dict[str, Tensor] = {}
        if self.weight is not None:
            own[self.weight] = weight
        if self.bias is not None:
            own[self.bias] = bias if self.norm is None else torch.zeros_like(bias)
        if self.norm is None:
            return own
        scale = (variance + self.norm.eps).sqrt()
        factor = torch.ones_like(scale) if self.weight is not None else weight
        return own | {
            self.norm.weight: scale * factor,
            self.norm.bias: bias + mean * factor,
            self.norm.mean: mean,
            self.norm.variance: variance,
        }


@dataclass(frozen=True)
class Layer:
    """Sites that are solved together, because their outputs are summed.

    target: the value that is to be as in the task models: a site's own output, or the residual stream that it is
    added to. rest: the other terms of that sum. relu: whether only its positive part is read. final: whether it is
    the model's output.
    """

    sites: tuple[Site, ...]
    target: Node
    rest: tuple[Node, ...] = ()
    relu: bool = False
    final: bool = False

    @property
    def name(self) -> str:
        """The names of its sites."""
        return " + ".join(site.name for site in self.sites)


@dataclass
class Found:
    """The layers in the order of execution, and why the others keep their weights."""

    layers: list[Layer] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)


def find_layers(program: Program) -> Found:
    """All layers of a module that can be refit, from the first to the last."""
    found = Found()
    live = program.needed(program.outputs)
    sites = list(_sites(program, live, found.kept))
    final = _behind_views(program.outputs[0]) if program.outputs else None
    by_target: dict[Node, list[Site]] = {}
    for site in sites:
        by_target.setdefault(_summed(site.output, live), []).append(site)
    state = tensors_of(program.module)
    entries = {name: program.tensor(name, state).numel() for name in (*state, *program.parts)}
    for target, some in by_target.items():
        joint = _solvable_together(some, entries)
        found.layers += [Layer((site,), site.output) for site in some if site not in joint]
        own = {site.output for site in joint}
        rest = tuple(term for term in _terms(target, own, live) if term not in own)
        readers = _readers(target, live)
        relu = len(readers) == 1 and operation(readers[0]) == "relu"
        found.layers.append(Layer(tuple(joint), target, rest, relu, target is final))
    found.layers.sort(key=lambda layer: program.place[layer.target])
    return found


def _sites(program: Program, live: set[Node], kept: dict[str, str]) -> Iterator[Site]:
    shared, folded = program.shared(), set[Node]()
    for node in program.nodes:
        if node.op != "call_function" or node not in live or node in folded:
            continue
        site = _site(program, node)
        if site is None:
            for name in _large_tensors(program, node):
                kept[name.removesuffix(".weight")] = f"is read by {operation(node)}, which is no linear layer"
            continue
        if site.weight is not None and (behind := _norm_behind(program, site.node, live, shared)):
            norm, output = behind
            folded |= {output, output.all_input_nodes[0]} if output.target not in _BATCH_NORMS else {output}
            site = Site(site.node, site.x, output, site.form, site.weight, site.bias, norm)
        if common := shared.intersection(site.tensors):
            kept[site.name] = f"{sorted(common)[0]} is shared with another layer, or read several times"
            continue
        yield site


def _site(program: Program, node: Node) -> Site | None:
    """The layer that an operation is; None for all others."""
    name = operation(node)
    if name in ("batch_norm", "_native_batch_norm_legit_no_training"):
        norm = _norm(program, node)
        if norm is None:
            return None
        x = node.args[0]
        output = node if name == "batch_norm" else next((user for user in node.users if is_item(user, node, 0)), None)
        if not isinstance(x, Node) or output is None or len(shape_of(x)) < 2:
            return None
        return Site(node, x, output, Scale(shape_of(x)[1]), None, norm=norm)
    read = {"linear": _linear, "addmm": _addmm, "mm": _product, "matmul": _product}.get(name)
    if read is None and name in ("conv1d", "conv2d", "conv3d", "convolution"):
        read = _convolution
    return read(program, node) if read else None


def _linear(program: Program, node: Node) -> Site | None:
    x, weight, bias = _arguments(node, 3)
    return _of_matrix(program, node, x, weight, bias, transposed=False)


def _addmm(program: Program, node: Node) -> Site | None:
    bias, x, weight = _arguments(node, 3)
    plain = node.kwargs.get("beta", 1) == node.kwargs.get("alpha", 1) == 1
    return _of_matrix(program, node, x, weight, bias, transposed=True) if plain else None


def _product(program: Program, node: Node) -> Site | None:
    x, weight = _arguments(node, 2)
    return _of_matrix(program, node, x, weight, None, transposed=True)


def _of_matrix(program: Program, node: Node, x: Any, weight: Any, bias: Any, *, transposed: bool) -> Site | None:
    while isinstance(weight, Node) and operation(weight) in ("t", "transpose", "permute", "numpy_T"):
        if len(shape_of(weight)) != 2 or weight.args[1:] not in ((), (0, 1), (1, 0), (-1, -2), (-2, -1), ([1, 0],)):
            return None
        weight, transposed = weight.args[0], not transposed
    if weight not in program.stored or x in program.stored or len(shape_of(weight)) != 2 or len(shape_of(x)) < 2:
        return None
    if bias is not None and (bias not in program.stored or len(shape_of(bias)) != 1):
        return None
    lengths = shape_of(x)[:-1]
    varying = [axis for axis, length in enumerate(lengths) if isinstance(length, str)]  # with the number of examples
    form = Linear(transposed, varying[0] if varying else 0)
    return Site(node, x, node, form, program.stored[weight], program.stored.get(bias))


def _convolution(program: Program, node: Node) -> Site | None:
    if operation(node) == "convolution":
        x, weight, bias, stride, padding, dilation, transposed, _, groups = _arguments(node, 9)
        if transposed:
            return None
    else:
        x, weight, bias, stride, padding, dilation, groups = _arguments(node, 7)
    if weight not in program.stored or (bias is not None and bias not in program.stored):
        return None
    kernel = shape_of(weight)[2:]
    count = len(kernel)
    if len(shape_of(x)) != count + 2:
        return None  # one example without a batch axis
    steps, spreads = _each(stride, count, 1), _each(dilation, count, 1)
    if isinstance(padding, str):
        reach = [spread * (k - 1) if padding == "same" else 0 for spread, k in zip(spreads, kernel, strict=True)]
        zeros = tuple((far // 2, far - far // 2) for far in reach)
    else:
        zeros = tuple((n, n) for n in _each(padding, count, 0))
    form = Convolution(tuple(kernel), steps, zeros, spreads, groups or 1)
    return Site(node, x, node, form, program.stored[weight], program.stored.get(bias))


def _norm(program: Program, node: Node) -> Norm | None:
    """The BatchNorm that an operation is, if it has scale, shift and running statistics."""
    if operation(node) == "batch_norm":
        _, weight, bias, mean, variance, training, _, eps, _ = _arguments(node, 9)
        if training:
            return None
    else:
        _, weight, bias, mean, variance, _, eps = _arguments(node, 7)
    names = [program.stored.get(x) for x in (weight, bias, mean, variance)]
    own = [name for name in names if name is not None]
    return Norm(own[0], own[1], own[2], own[3], eps) if len(own) == 4 else None


def _norm_behind(program: Program, node: Node, live: set[Node], shared: set[str]) -> tuple[Norm, Node] | None:
    """The BatchNorm that alone reads a layer, and its output."""
    readers = _readers(node, live)
    if len(readers) != 1 or readers[0].args[:1] != (node,):
        return None
    site = _site(program, readers[0])
    if site is None or site.norm is None or shared.intersection(site.norm.names):
        return None
    last = len(shape_of(node)) - 1
    return (site.norm, site.output) if operation(node).startswith("conv") or last == 1 else None


_BATCH_NORMS = (torch.ops.aten.batch_norm.default,)
_VIEWS = ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "clone", "contiguous", "dropout", "alias")


def _behind_views(node: Node) -> Node:
    """The value that an output shows in another shape."""
    while operation(node) in _VIEWS and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _summed(node: Node, live: set[Node]) -> Node:
    """The sum that a value is a term of, and of nothing else; the value itself where there is none."""
    while (readers := _readers(node, live)) and len(readers) == 1 and _is_sum(readers[0], node):
        node = readers[0]
    return node


def _is_sum(node: Node, term: Node) -> bool:
    """Whether an operation adds two values of the shape of a term."""
    if operation(node) != "add" or node.kwargs.get("alpha", 1) != 1 or len(node.args) < 2:
        return False
    terms = node.args[:2]
    return all(isinstance(x, Node) and shape_of(x) == shape_of(term) for x in terms) and terms[0] is not terms[1]


def _terms(target: Node, own: set[Node], live: set[Node]) -> Iterator[Node]:
    """What a target is the sum of: the outputs of its sites, and whatever is added to them."""
    if target in own:
        yield target
        return
    for term in target.args[:2]:
        assert isinstance(term, Node)
        inside = any(_is_within(output, term, live) for output in own)
        yield from _terms(term, own, live) if inside else (term,)


def _is_within(output: Node, total: Node, live: set[Node]) -> bool:
    """Whether a site's output is a term of a sum."""
    while output is not total:
        readers = _readers(output, live)
        if len(readers) != 1 or not _is_sum(readers[0], output):
            return False
        output = readers[0]
    return True


def _solvable_together(sites: Sequence[Site], entries: Mapping[str, int]) -> list[Site]:
    """The sites with as many groups on the same axis as those with the most weights; others are solved by themselves,
    before: the sum then makes up for what they miss. entries: of every tensor."""
    alike: dict[tuple[int, int], list[Site]] = {}
    for site in sites:
        axis = site.form.channel % len(shape_of(site.output))
        alike.setdefault((site.form.groups, axis), []).append(site)
    return max(alike.values(), key=lambda some: sum(entries[site.tensors[0]] for site in some))


def _readers(node: Node, live: set[Node]) -> list[Node]:
    return [user for user in node.users if user in live or user.op == "output"]


def _large_tensors(program: Program, node: Node) -> list[str]:
    """Names of the matrices (or more) that an operation reads; to take their shape is to read nothing."""
    if operation(node).startswith("sym_"):
        return []
    state = {program.stored[x]: x for x in node.all_input_nodes if x in program.stored}
    return [name for name, x in state.items() if len(shape_of(x)) > 1 and min(shape_of(x)) > 1]


def _arguments(node: Node, count: int) -> list[Any]:
    """The first arguments of an operation, by place or by name; None where they are not given."""
    names = [argument.name for argument in node.target._schema.arguments][:count]  # type: ignore[union-attr]
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return [given.get(name) for name in names] + [None] * (count - len(names))


def _each(value: Any, count: int, default: int) -> tuple[int, ...]:
    """A number for every axis; one may stand for all."""
    values = [default] if value is None or value == [] else [value] if isinstance(value, int) else list(value)
    return tuple(values * count if len(values) == 1 else values)
