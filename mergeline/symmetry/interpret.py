"""Walk over a trace with abstract tensors in place of numbers, one operation rule after the other."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from mergeline.errors import InputError
from mergeline.symmetry.contraction import Record
from mergeline.symmetry.domains import Domains
from mergeline.symmetry.labels import AbstractTensor, UnsupportedError, constant, fixed, of_data
from mergeline.symmetry.primitives import freeze_all, pointwise
from mergeline.symmetry.rules import Call, Parameter, find_rule, labelled, tensors_in
from mergeline.symmetry.trace import Trace, is_mutable, is_pointwise, operation

LARGEST_CONSTANT = 1 << 22
"""Constants with more elements are taken as fixed without a look at their values."""

DATA = object()
"""In place of a number that depends on the values of the inputs."""

METADATA = ("sym_size", "sym_numel", "sym_stride", "sym_storage_offset", "size", "numel", "stride", "dim")
"""Operations whose result tells nothing about the elements of their operands."""


@dataclass
class Unknown:
    """An operation without a rule (or used in a way that its rule does not know), and where it was met."""

    reason: str
    nodes: list[str] = field(default_factory=list)


@dataclass
class Interpretation:
    """What the walk found: labels of every parameter and activation, and what the contractions told."""

    domains: Domains
    record: Record
    parameters: dict[str, Parameter]
    values: dict[str, AbstractTensor]
    unknown: dict[str, Unknown]


def interpret(trace: Trace) -> Interpretation:
    """Interpret every live operation; units reach neither the inputs of the module nor what may be its outputs."""
    return _Walk(trace).run()


class _Walk:
    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.domains = Domains()
        self.record = Record()
        self.unknown: dict[str, Unknown] = {}
        self.environment: dict[Node, Any] = {}
        self.parameters = self._parameters()

    def run(self) -> Interpretation:
        self._freeze_overlapping()
        for node in self.trace.program.graph.nodes:
            name = self.domains.node = self.trace.names[node]
            if node.op == "call_function":
                value = self._call(node) if node in self.trace.live else None
            elif node.op == "output":
                self.domains.node = ""
                for x in tensors_in(self._read(node.args)):
                    if 0 in x.shape:
                        raise InputError("symmetry: an output without elements for these inputs would show no change")
                    freeze_all(labelled(x), "reaches an output of the model")
                continue
            else:
                value = self._placeholder(node)
            self.environment[node] = replace(value, node=name) if isinstance(value, AbstractTensor) else value
            if node in self.trace.unseen:
                for x in tensors_in(value):
                    freeze_all(labelled(x), "may leave the model unseen")
        values = {
            self.trace.names[node]: value
            for node, value in self.environment.items()
            if isinstance(value, AbstractTensor)
        }
        parameters = {parameter.name: parameter for parameter in self.parameters.values()}
        return Interpretation(self.domains, self.record, parameters, values, self.unknown)

    def _parameters(self) -> dict[str, Parameter]:
        """Placeholder -> parameter; tied ones are one."""
        by_storage: dict[object, Parameter] = {}
        state = self.trace.program.state_dict
        found = {}
        for placeholder, name in self.trace.parameters.items():
            key = storage_key(state[name])
            if key not in by_storage:
                by_storage[key] = Parameter(self.domains, name, state[name].shape)
            found[placeholder] = by_storage[key]
        return found

    def _freeze_overlapping(self) -> None:
        """Parameters that share memory, but are not the same tensor, would permute one another."""
        parameters = {parameter.name: parameter for parameter in self.parameters.values()}
        memory = {name: _memory(self.trace.program.state_dict[name]) for name in parameters}
        furthest = ""  # the tensor that reaches furthest so far
        for name in sorted(parameters, key=lambda name: memory[name]):
            storage, start, stop = memory[name]
            if furthest and memory[furthest][0] == storage and start < memory[furthest][2]:
                for sharing in (name, furthest):
                    freeze_all(parameters[sharing].labelled(), f"{furthest} and {name} share memory")
            if not furthest or memory[furthest][0] != storage or stop > memory[furthest][2]:
                furthest = name

    def _placeholder(self, node: Node) -> object:
        if node.name in self.parameters:
            return self.parameters[node.name]
        if node.op == "get_attr":
            value = self.trace.program.graph_module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return self._constant(value)
        if node.name in self.trace.constants:
            value = self.trace.constants[node.name]
            # Masks and indices of the state dict may differ from checkpoint to checkpoint: their values say nothing.
            own = node.name in self.trace.stored
            return fixed(self.domains, value.shape, activation=False) if own else self._constant(value)
        value = node.meta.get("val")
        return fixed(self.domains, _shape(value)) if isinstance(value, Tensor) else _number(value)

    def _constant(self, value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        if value.device.type == "meta" or value.numel() > LARGEST_CONSTANT or 0 in value.shape:
            return fixed(self.domains, value.shape, activation=False)
        return of_data(self.domains, value.detach())

    def _read(self, arguments: Any) -> Any:
        return map_arg(arguments, lambda node: self.environment[node])

    def _call(self, node: Node) -> Any:
        """The abstract value of an operation."""
        if node.target is operator.getitem:
            source, index = self._read(node.args)
            return source[index]
        value = node.meta.get("val")
        outputs = list(value) if isinstance(value, tuple | list) else [value]
        several = isinstance(value, tuple | list)
        arguments = self._arguments(node)
        operands = tensors_in(arguments)
        if not any(isinstance(output, Tensor) for output in outputs):
            self._freeze_for_numbers(node, operands)
            return [_number(output) for output in outputs] if several else _number(value)
        call = self._described(node, outputs)
        try:
            result = self._apply_rule(node, call, arguments, operands)
            _check_shapes(call, result)
        except UnsupportedError as fault:
            result = self._unknown(call, operands, str(fault))
        if isinstance(result, tuple) and not several:
            result = result[0]
        if any(isinstance(x, AbstractTensor) and x.activation for x in operands):
            result = _as_activation(result)
        if is_mutable(node):
            self.environment[node.args[0]] = replace(result, node=self.domains.node)  # type: ignore[index]
        return result

    def _described(self, node: Node, outputs: Sequence[Any]) -> Call:
        """The operation as its rule sees it."""
        name = operation(node)
        readers = [user.args[1] for user in node.users if user.target is operator.getitem and user in self.trace.live]
        return Call(
            name.removesuffix("_") if is_mutable(node) else name,
            self.domains.node,
            tuple(_shape(output) if isinstance(output, Tensor) else None for output in outputs),
            frozenset(index for index in readers if isinstance(index, int)),
            self.domains,
            self.record,
            _masks(node),
        )

    def _freeze_for_numbers(self, node: Node, operands: Sequence[AbstractTensor | Parameter]) -> None:
        """Numbers that are made of values (not of shapes) may steer anything: the values must stay as they are."""
        name = operation(node)
        if name not in METADATA and not name.startswith(("_assert", "sym_constrain")):
            for x in operands:
                freeze_all(labelled(x), f"{name} makes numbers of values")

    def _arguments(self, node: Node) -> dict[str, Any]:
        """Arguments by name, defaults included; the first tensor (`self` or `input`) is `x`."""
        schema = getattr(node.target, "_schema", None)
        args, kwargs = self._read(node.args), self._read(node.kwargs)
        if schema is None:
            return {**{str(place): value for place, value in enumerate(args)}, **kwargs}
        named = {entry.name: entry.default_value for entry in schema.arguments if entry.has_default_value()}
        named.update(zip((entry.name for entry in schema.arguments), args, strict=False))
        named.update(kwargs)
        return {"x" if name in ("self", "input") else name: value for name, value in named.items()}

    def _apply_rule(
        self, node: Node, call: Call, arguments: Mapping[str, Any], operands: Sequence[AbstractTensor | Parameter]
    ) -> Any:
        rule = find_rule(operation(node)) or find_rule(call.name)
        if rule is not None:
            if DATA in arguments.values():
                raise UnsupportedError("a number that depends on data")
            if not rule.lazy:
                arguments = {name: _labelled(value) for name, value in arguments.items()}
            return rule(call, arguments)
        tensors = [labelled(x) for x in operands]
        if is_pointwise(node):
            result = pointwise(tensors) if tensors else constant(self.domains, call.shape)
            return (result,) * len(call.shapes)
        if not tensors:
            return tuple(fixed(self.domains, shape or (), activation=False) for shape in call.shapes)
        raise UnsupportedError("no rule")

    def _unknown(self, call: Call, operands: Sequence[AbstractTensor | Parameter], reason: str) -> Any:
        """Freeze what an operation reads, report it, and let nothing move in what it gives."""
        tensors = [labelled(x) for x in operands]
        if any(x.moves for x in tensors):
            self.unknown.setdefault(call.name, Unknown(reason)).nodes.append(call.node)
        for x in tensors:
            freeze_all(x, f"no rule for the operation {call.name}" if reason == "no rule" else f"{call.name}: {reason}")
        return tuple(None if shape is None else fixed(self.domains, shape) for shape in call.shapes)


def _masks(node: Node) -> frozenset[int]:
    """Places of truth values among the index tensors of an operation."""
    indices = node.args[1] if len(node.args) > 1 and isinstance(node.args[1], list | tuple) else ()
    values = [index.meta.get("val") if isinstance(index, Node) else None for index in indices]
    return frozenset(
        place
        for place, value in enumerate(values)
        if isinstance(value, Tensor) and value.dtype in (torch.bool, torch.uint8)
    )


def storage_key(tensor: Tensor) -> object:
    """Equal for tensors that are the same memory seen the same way."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _memory(tensor: Tensor) -> tuple[int, int, int]:
    """The storage of a tensor, and the first element in it and the one after the last."""
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset())
    return tensor.untyped_storage()._cdata, start, start + int(last) + 1 if tensor.numel() else start


def _labelled(value: Any) -> Any:
    if isinstance(value, Parameter):
        return value.labelled()
    return [_labelled(item) for item in value] if isinstance(value, list | tuple) else value


def _as_activation(result: Any) -> Any:
    if isinstance(result, AbstractTensor):
        return (
            replace(result, activation=True, sources=(frozenset(),) * result.ndim) if not result.activation else result
        )
    return tuple(_as_activation(item) for item in result) if isinstance(result, tuple) else result


def _check_shapes(call: Call, result: Any) -> None:
    results = result if isinstance(result, tuple) else (result,)
    for found, expected in zip(results, call.shapes, strict=False):
        if isinstance(found, AbstractTensor) and found.shape != expected:
            raise UnsupportedError(f"its rule gives the shape {list(found.shape)} for {list(expected or ())}")


def _shape(value: Tensor) -> tuple[int, ...]:
    shape = tuple(_number(n) for n in value.shape)
    if DATA in shape:
        raise InputError("symmetry: shapes in the module depend on its data, so it has no one trace")
    return shape


def _number(value: Any) -> Any:
    """A number that the trace knows; for one that depends on the batch size, its value in the example."""
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        hint = value.node.hint
        return DATA if hint is None else hint
    return value
