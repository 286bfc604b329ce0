"""A module as a list of operations that is computed piece by piece, so that a layer can change before the next runs."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves, tree_map

from mergeline.errors import InputError
from mergeline.symmetry.interpret import storage_key
from mergeline.symmetry.trace import Inputs, Trace, arguments, is_mutable, length_of, operation, tensors_of, trace

Values = dict[str, Any]
"""What is known of one run: the value of each operation that a later one still reads, by the operation's name."""


class Program:
    """The operations of a traced module, without changes in place.

    nodes: in their order. stored: operation -> name of the tensor of the state dict that it stands for, or of a part of
    one that is split before it is used. parts: name of a part -> its tensor and its rows.
    """

    def __init__(self, module: nn.Module, inputs: Inputs) -> None:
        """Raises InputError where the module cannot be traced with these inputs."""
        self.module = module
        self._trace: Trace = _trace_of(module, self.prepared(inputs))
        graph = self._trace.program.graph
        _without_changes_in_place(graph)
        self.nodes: list[Node] = list(graph.nodes)
        self.place = {node: number for number, node in enumerate(self.nodes)}
        by_name = {node.name: node for node in self.nodes}
        self.stored = {by_name[place]: name for place, name in self._trace.stored.items() if place in by_name}
        constants = self._trace.constants.items()
        self.constants = {by_name[place]: value for place, value in constants if place in by_name}
        self.parts: dict[str, tuple[str, slice]] = {}
        self._find_parts()
        placed = {*self.stored, *self.constants}
        self.inputs = [node for node in self.nodes if node.op == "placeholder" and node not in placed]
        self.outputs = [node for node in graph.output_node().args[0] if isinstance(node, Node)]
        self.shapes = [shape_of(node) for node in self.inputs]

    def prepared(self, inputs: Inputs) -> Inputs:
        """The inputs as the module takes them here: on its device, and float32 as its weights are."""
        device = next((x.device for x in tensors_of(self.module).values()), None)

        def placed(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return leaf.to(device, torch.float32 if leaf.is_floating_point() else leaf.dtype)

        prepared: Inputs = tree_map(placed, dict(inputs) if isinstance(inputs, Mapping) else inputs)
        return prepared

    def start(self, inputs: Inputs) -> Values:
        """The values that a run begins with. Raises InputError for inputs of another shape than those traced."""
        args, kwargs = arguments(self.prepared(inputs))
        named = [kwargs[node.name] for node in self.inputs if node.name in kwargs]
        leaves = named if kwargs and len(named) == len(self.inputs) else tree_leaves((args, kwargs))
        fixed = self._trace.batch
        for leaf, expected in zip(leaves, self.shapes, strict=True):
            shape = tuple(leaf.shape) if isinstance(leaf, Tensor) else None
            if shape is not None and (shape[1:] != expected[1:] or (fixed is not None and shape[:1] != (fixed,))):
                which = (
                    "all batches must have one shape"
                    if shape[1:] != expected[1:]
                    else (f"this module can only be traced for batches of one size ({fixed})")
                )
                raise InputError(f"calibration: a batch has the shape {list(shape)}, but {which}; make batches alike")
        return {node.name: leaf for node, leaf in zip(self.inputs, leaves, strict=True)}

    def needed(self, targets: Iterable[Node]) -> set[Node]:
        """The targets and everything that they are computed from."""
        found: set[Node] = set()
        left = list(targets)
        while left:
            node = left.pop()
            if node not in found:
                found.add(node)
                left += () if node in self.stored else node.all_input_nodes
        return found

    def whole(self, name: str) -> tuple[str, slice]:
        """The tensor of the state dict that a name is a part of, and its rows there."""
        return self.parts.get(name, (name, slice(None)))

    def tensor(self, name: str, state: Mapping[str, Tensor]) -> Tensor:
        """A tensor, or the part of one, of a model."""
        if name in state:
            return state[name]
        whole, rows = self.parts[name]
        return state[whole][rows]

    def joined(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state with every part in its tensor."""
        found = {name: tensor for name, tensor in state.items() if name not in self.parts}
        for name in self.parts.keys() & state.keys():
            whole, rows = self.parts[name]
            places = torch.arange(rows.start, rows.stop, device=found[whole].device)
            found[whole] = found[whole].index_copy(0, places, state[name])
        return found

    def shared(self) -> set[str]:
        """Names of the tensors of the state dict that have several names or are read by several operations."""
        memory: dict[object, list[str]] = {}
        for name, tensor in tensors_of(self.module).items():
            memory.setdefault(storage_key(tensor), []).append(name)
        shared = {name for names in memory.values() if len(names) > 1 for name in names}
        readers: dict[str, int] = {}
        for node, name in self.stored.items():
            readers[name] = readers.get(name, 0) + len(node.users)
        shared |= {name for name, count in readers.items() if count > 1}
        return shared | {part for part, (whole, _) in self.parts.items() if whole in shared}

    def _find_parts(self) -> None:
        """Packed projections of attention: tensors that are only read in parts of their rows."""
        for node in self.nodes:
            split = node.args[0] if operation(node) in ("split", "split_with_sizes", "chunk") else None
            if not isinstance(split, Node) or split not in self.stored:
                continue
            values, along = node.meta["val"], node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
            if along != 0 or not all(user.target is operator.getitem for user in node.users):
                continue
            whole = self.stored[split]
            for user in node.users:
                start = sum(len(value) for value in values[: user.args[1]])
                stop = start + len(values[user.args[1]])
                self.stored[user] = f"{whole}[{start}:{stop}]"
                self.parts[self.stored[user]] = whole, slice(start, stop)


@dataclass(frozen=True)
class Segment:
    """The operations to compute next, and which values are no longer read after each."""

    steps: tuple[tuple[Node, tuple[str, ...]], ...]
    targets: tuple[Node, ...]
    released: tuple[str, ...]


class Walk:
    """How far the runs of one model have come; the runs on all batches go in step."""

    def __init__(
        self, program: Program, state: Mapping[str, Tensor], targets: Iterable[Node], keep: Iterable[Node] = ()
    ) -> None:
        """state: of the model, may change between segments. targets: all that will ever be asked for; keep: again."""
        self.program = program
        self.state = state
        self._keep = {*keep}
        self._needed = program.needed([*targets, *self._keep])
        self._done: set[Node] = set(program.inputs)

    def segment(self, targets: Sequence[Node]) -> Segment:
        """What must be computed for the targets now. It counts as computed from here on."""
        fixed = {*self.program.stored, *self.program.constants}
        asked = self.program.needed(targets)
        todo = [node for node in self.program.nodes if node in asked and node not in self._done and node not in fixed]
        steps = []
        for node in todo:
            self._done.add(node)
            over = (x for x in node.all_input_nodes if x not in fixed and x not in targets and self._is_over(x))
            steps.append((node, tuple(x.name for x in over)))
        released = tuple(node.name for node in targets if node not in fixed and self._is_over(node))
        return Segment(tuple(steps), tuple(targets), released)

    def run(self, segment: Segment, values: Values) -> list[Any]:
        """Compute a segment of one run; the values of its targets. `values` is brought up to date."""
        with torch.no_grad():
            for node, over in segment.steps:
                values[node.name] = self._compute(node, values)
                for name in over:
                    values.pop(name, None)
        found = [self.value(node, values) for node in segment.targets]
        for name in segment.released:
            values.pop(name, None)
        return found

    def _is_over(self, node: Node) -> bool:
        return node not in self._keep and all(user in self._done or user not in self._needed for user in node.users)

    def _compute(self, node: Node, values: Values) -> Any:
        args, kwargs = map_arg((node.args, node.kwargs), lambda x: self.value(x, values))
        if node.op == "get_attr":
            raise InputError(f"calibration: the trace of {type(self.program.module).__name__} holds other graphs")
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def value(self, node: Node, values: Mapping[str, Any]) -> Any:
        """The value of an operation in a run that has come past it."""
        if node in self.program.stored:
            return self.program.tensor(self.program.stored[node], self.state)
        return self.program.constants[node] if node in self.program.constants else values[node.name]


def _trace_of(module: nn.Module, inputs: Inputs) -> Trace:
    """The trace for any number of examples, where the module allows it: one example alone would say `for one only`."""
    tensors = [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]
    if tensors and all(x.ndim and len(x) == 1 for x in tensors):
        try:
            found = trace(module, tree_map(lambda x: torch.cat([x, x]) if isinstance(x, Tensor) else x, inputs))
        except InputError:  # it takes one example at a time
            return trace(module, inputs)
        if found.batch is None:
            return found
    return trace(module, inputs)


def shape_of(node: Any) -> tuple[Any, ...]:
    """The shape of an operation's value in the trace, with the names of lengths that vary; () where it is no tensor."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return tuple(map(length_of, value.shape)) if isinstance(value, Tensor) else ()


def _without_changes_in_place(graph: Graph) -> None:
    """Operations such as `relu_` become `relu`, and whoever reads the changed value afterwards reads the new one."""
    later: set[Node] = set(graph.nodes)
    for node in list(graph.nodes):
        later.discard(node)
        if not is_mutable(node):
            continue
        packet = getattr(torch.ops.aten, operation(node).removesuffix("_"), None)
        plain = getattr(packet, node.target._overloadname, None)
        changed = node.args[0]
        if plain is None or not isinstance(changed, Node):
            raise InputError(f"calibration: the operation {operation(node)} changes a value in place; write it plainly")
        node.target = plain
        for user in list(changed.users):
            if user in later:
                user.replace_input_with(changed, node)


def is_item(node: Node, of: Node, index: int) -> bool:
    """Whether a value is one of the results of an operation that has several."""
    return node.target is operator.getitem and node.args == (of, index)
