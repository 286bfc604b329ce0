"""Trace a module into a graph of ATen operations, with names that say where in the module an operation stands."""

from __future__ import annotations

import logging
import operator
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from mergeline.errors import InputError
from mergeline.threads import one_export

Inputs = Sequence[Any] | Mapping[str, Any]
"""Example inputs of a module: positional, or by the names of its `forward`."""


@dataclass(frozen=True)
class Trace:
    """An exported module. `parameters` maps placeholders to tensors of the state dict, `constants` to their values."""

    program: ExportedProgram
    names: Mapping[Node, str]

    @cached_property
    def stored(self) -> dict[str, str]:
        """Placeholder -> name of its tensor, for everything that is in the state dict."""
        return _stored(self.program)

    @cached_property
    def parameters(self) -> dict[str, str]:
        """Placeholder -> name in the state dict, for parameters and persistent float buffers."""
        state = self.program.state_dict
        return {placeholder: name for placeholder, name in self.stored.items() if _holds_units(state[name])}

    @cached_property
    def constants(self) -> dict[str, Any]:
        """Placeholder -> value of other buffers and of tensors in the module's code."""
        signature, stores = self.program.graph_signature, (self.program.state_dict, self.program.constants)
        named = {**signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
        return {
            placeholder: next(store[name] for store in stores if name in store)
            for placeholder, name in named.items()
            if placeholder not in self.parameters
        }

    @cached_property
    def read(self) -> frozenset[str]:
        """Tensors of the state dict whose elements some operation reads."""
        return frozenset(_names_read(self.program))

    @cached_property
    def batch(self) -> int | None:
        """The length of the inputs' first axis if the trace holds for that length only; None if for any."""
        inputs = set(self.program.graph_signature.user_inputs)
        values = [node.meta.get("val") for node in self.program.graph.nodes if node.name in inputs]
        lengths = [length_of(x.shape[0]) for x in values if isinstance(x, Tensor) and x.ndim]
        return next((n for n in lengths if isinstance(n, int)), None)

    @cached_property
    def live(self) -> frozenset[Node]:
        """The nodes that the outputs depend on, and those that read parameters.

        Others (shapes of values that nobody reads, keys and values on their way into a cache) say nothing.
        """
        live: set[Node] = set()
        for node in reversed(self.program.graph.nodes):
            if node.op == "output" or node in live or is_mutable(node) or node in self._readers:
                live.add(node)
                live.update(node.all_input_nodes)
        return frozenset(live)

    @cached_property
    def unseen(self) -> frozenset[Node]:
        """The nodes that read parameters for no output: for an object whose tensors cannot be seen, or for nothing."""
        return frozenset(node for node in self._readers if self.live.isdisjoint(node.users))

    @cached_property
    def _readers(self) -> frozenset[Node]:
        """The nodes that read tensors of the state dict, or what is made of those without the inputs."""
        inputs, own, readers = set(self.program.graph_signature.user_inputs), set(), set()
        varying = {node for node in self.program.graph.nodes if node.name in inputs}
        for node in self.program.graph.nodes:
            if node.name in self.stored:
                own.add(node)
            if not own.isdisjoint(node.all_input_nodes):
                readers.add(node)
            if not varying.isdisjoint(node.all_input_nodes):
                varying.add(node)
            elif node in readers:
                own.add(node)
        # to take one of several outputs is to read nothing: the operation itself may have another that is used
        return frozenset(x for x in readers if x.op == "call_function" and x.target is not operator.getitem)


def trace(module: nn.Module, example_inputs: Inputs) -> Trace:
    """Export a module in eval mode, with any batch size where the module allows it.

    Where values are changed in place through views, the graph is made functional first. Raises InputError where
    torch.export cannot trace the module, or where it returns no tensor.
    """
    args, kwargs = arguments(example_inputs)
    with one_export, _backends_left_on(module), _quiet_eval(module), _plain_outputs(module):
        try:
            program = _export(module, args, kwargs)
            if any(_needs_functional(node) for node in program.graph.nodes):
                program = _functional(program)
        except InputError as fault:
            raise InputError(f"symmetry of {type(module).__name__}: {fault}") from fault
        except Exception as fault:  # torch.export raises whatever the module's code raises
            raise InputError(
                f"symmetry of {type(module).__name__}: torch.export cannot trace it with these inputs: {fault}"
            ) from fault
    if not any(isinstance(output, Node) for output in program.graph.output_node().args[0]):
        raise InputError(f"symmetry of {type(module).__name__}: it returns no tensors, so any change would go unseen")
    return Trace(program, node_names(program.graph))


def length_of(length: int | torch.SymInt) -> int | str:
    """The length of an axis in a trace, or its name where it varies; some that began as varying turned out fixed."""
    known = length if isinstance(length, int) else length.node.maybe_as_int()
    return str(length) if known is None else int(known)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of the state dict, as they are in the module (other state is left out)."""
    return {name: x for name, x in module.state_dict(keep_vars=True).items() if isinstance(x, Tensor)}


def arguments(example_inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments for a call of the module."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return tuple(example_inputs), {}


def output_tensors(outputs: Any) -> list[Tensor]:
    """The tensors that a module returns: in sequences, mappings and data classes, however deep.

    Objects of other classes are left out: they are caches for the next call (of keys and values), which hold units in
    the order of the model that made them.
    """
    if isinstance(outputs, Tensor):
        return [outputs]
    if is_dataclass(outputs) and not isinstance(outputs, Mapping):
        outputs = [getattr(outputs, field.name) for field in fields(outputs)]
    parts = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, tuple | list) else ()
    return [tensor for part in parts for tensor in output_tensors(part)]


def _export(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    shapes = ShapesCollection()
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] > 1:
            shapes[leaf] = {0: Dim.AUTO}
    try:
        dynamic = shapes.dynamic_shapes(module, args, kwargs)
        return torch.export.export(module, args, kwargs, dynamic_shapes=dynamic, strict=False)
    except Exception:  # some modules cannot be traced for every batch size: trace for this one
        return torch.export.export(module, args, kwargs, strict=False)


def _functional(program: ExportedProgram) -> ExportedProgram:
    """The trace without changes in place, which leaves out operations without a live result.

    Raises InputError where those read parameters: their units might move with others, and nobody would see.
    """
    functional = program.run_decompositions({})
    lost = sorted(_names_read(program) - _names_read(functional))
    if lost:
        raise InputError(
            f"'{lost[0]}' is read, but for no tensor that is returned; return tensors in sequences, mappings or "
            "data classes instead of other objects, or leave the tensor out"
        )
    return functional


def _names_read(program: ExportedProgram) -> set[str]:
    """Tensors of the state dict whose elements some operation reads."""
    stored = _stored(program)
    return {
        stored[node.name]
        for node in program.graph.nodes
        if node.name in stored and any(not operation(user).startswith(("_assert", "sym_")) for user in node.users)
    }


def _stored(program: ExportedProgram) -> dict[str, str]:
    signature = program.graph_signature
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return {placeholder: name for placeholder, name in named.items() if name not in signature.non_persistent_buffers}


@contextmanager
def _backends_left_on(module: nn.Module) -> Iterator[None]:
    """Keep torch.export from turning oneDNN and cuDNN off, which it does for all threads while it traces.

    What is computed beside a trace would get other kernels, and other last digits. Recurrent layers need it: with
    oneDNN on they would be traced as one opaque operation.
    """
    from torch.export import _trace

    own = getattr(_trace, "_ignore_backend_decomps", None)
    if own is None or any(isinstance(layer, nn.RNNBase) for layer in module.modules()):
        yield
        return
    _trace._ignore_backend_decomps = nullcontext  # type: ignore[assignment]
    try:
        yield
    finally:
        _trace._ignore_backend_decomps = own


@contextmanager
def _quiet_eval(module: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, no fused attention that hides its operations; everything restored afterwards.

    Warnings and logs of torch.export about its own internals are kept from the user.
    """
    modes = {child: child.training for child in module.modules()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        module.eval()
        with torch.no_grad(), warnings.catch_warnings(), silent_log("torch"):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for child, mode in modes.items():
            child.training = mode


@contextmanager
def silent_log(library: str) -> Iterator[None]:
    """What a library logs goes nowhere: its failures come as exceptions."""
    loggers = [
        logging.getLogger(name)
        for name in list(logging.root.manager.loggerDict)
        if f"{name}.".startswith(f"{library}.")
    ]
    silenced = [logger for logger in loggers if not logger.disabled]
    for logger in silenced:
        logger.disabled = True
    try:
        yield
    finally:
        for logger in silenced:
            logger.disabled = False


@contextmanager
def _plain_outputs(module: nn.Module) -> Iterator[None]:
    """The module returns a list of tensors: torch.export refuses classes that it does not know."""
    hook = module.register_forward_hook(lambda _module, _arguments, outputs: output_tensors(outputs))
    try:
        yield
    finally:
        hook.remove()


def _holds_units(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def operation(node: Node) -> str:
    """Name of the operation: `relu` for `aten::relu`, with the namespace for others (`my::op`, `python::mul`)."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet is None:
        return f"python::{getattr(node.target, '__name__', node.target)}"
    namespace, _, name = packet._qualified_op_name.partition("::")
    return name if namespace == "aten" else f"{namespace}::{name}"


def is_mutable(node: Node) -> bool:
    """Whether the operation changes one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def is_pointwise(node: Node) -> bool:
    """Whether PyTorch tags the operation (or its functional form) as pointwise."""
    tags = getattr(node.target, "tags", ())
    if torch.Tag.nondeterministic_seeded in tags:
        return False  # noise comes in the order of the elements
    if torch.Tag.pointwise in tags:
        return True
    functional = getattr(torch.ops.aten, operation(node).removesuffix("_"), None) if is_mutable(node) else None
    overloads = [getattr(functional, name) for name in functional.overloads()] if functional else []
    return any(torch.Tag.pointwise in overload.tags for overload in overloads)


_CHANGE_NO_ELEMENT = ("detach_", "requires_grad_", "lift_fresh_")
_RETURN_THEIR_INPUT = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")


def _may_share_memory(node: Node) -> bool:
    """Whether the value may be a view of an argument."""
    if node.target is operator.getitem or operation(node) in _RETURN_THEIR_INPUT:
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(value.alias_info and not value.alias_info.is_write for value in schema.returns)


def _needs_functional(node: Node) -> bool:
    """Whether an in-place operation could be seen through a view, or is not simply pointwise."""
    if not is_mutable(node) or operation(node) in _CHANGE_NO_ELEMENT:
        return False
    target = node.args[0] if node.args else None
    if not is_pointwise(node) or not isinstance(target, Node) or target.op != "call_function":
        return True
    return _may_share_memory(target) or any(_may_share_memory(user) for user in target.users)


def node_names(graph: Graph) -> dict[Node, str]:
    """A stable name for every operation: path of its submodule, operation, and a number where that repeats."""
    counts: Counter[str] = Counter()
    names: dict[Node, str] = {}
    for node in graph.nodes:
        if node.op != "call_function":
            names[node] = node.name
        elif node.target is operator.getitem:
            names[node] = f"{names[node.args[0]]}[{node.args[1]}]"
        else:
            stack = node.meta.get("nn_module_stack")
            path = next(reversed(stack.values()))[0] if stack else ""
            name = f"{path}.{operation(node)}" if path and not path.startswith("_empty_nn_module") else operation(node)
            counts[name] += 1
            names[node] = name if counts[name] == 1 else f"{name}#{counts[name]}"
    return names
