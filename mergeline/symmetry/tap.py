"""Observe units: the traced graph of a module with a call after every value in which units show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule

from mergeline.errors import InputError
from mergeline.symmetry.symmetry import Site, Symmetry
from mergeline.symmetry.trace import Inputs, arguments, is_mutable, node_names, tensors_of, trace

Consumers = Literal["last", "all", "last value"]


def choose_sites(symmetry: Symmetry, consumers: Consumers = "last") -> tuple[Site, ...]:
    """Where to observe each group: what its last reader reads (as in MuDSC), or what every reader reads.

    A reader may read the units in two values (queries and keys): both are chosen, or the `last value` of them. Groups
    that no operation reads are observed where they are made. Groups that never show are left out.
    """
    if consumers not in get_args(Consumers):
        raise InputError(f"consumers: '{consumers}' is not known; use {', '.join(get_args(Consumers))}")
    chosen: list[Site] = []
    for group in symmetry.groups:
        sites = [site for site in symmetry.sites if site.group == group]
        sites = [site for site in sites if site.kind == "use"] or sites
        if consumers != "all":
            sites = [site for site in sites if site.at == sites[-1].at]
        values = {(site.node, site.dims): site for site in sites}  # the same value may be read several times
        chosen += list(values.values())[-1:] if consumers == "last value" else values.values()
    return tuple(chosen)


class Tap:
    """Runs models of one architecture and gives the activations of their units.

    One graph serves all models: the parameters of each are swapped in for a run. The graph is traced from a module
    when inputs come whose shapes it was not traced for; mostly any batch size will do.
    """

    def __init__(self, module: nn.Module, symmetry: Symmetry, sites: Sequence[Site] | None = None) -> None:
        """sites: by default, the last reader of each group."""
        self.symmetry = symmetry
        self.sites = choose_sites(symmetry) if sites is None else tuple(sites)
        self.spans = {site: symmetry.site_spans(site) for site in self.sites}
        self._module = module
        self._graph: GraphModule | None = None
        self._names: dict[str, list[str]] = {}  # tensors that the graph reads, and all their names
        self._take: Callable[[str, Tensor], None] | None = None  # what the run at hand does with a value
        self._copies = False

    def run(
        self, state: Mapping[str, Tensor], inputs: Inputs, take: Callable[[str, Tensor], None] | None = None
    ) -> dict[str, Tensor]:
        """Run a model with these parameters; the values of all observed operations, by their names in the trace.

        take: is called with each of them as soon as it is there; none is kept and returned then, which spares memory.
        Raises InputError where the model lacks a tensor, or the module's trace a site.
        """
        seen: dict[str, Tensor] = {}
        self._take = take or seen.__setitem__
        self._copies = take is None
        try:
            self._run(state, inputs)
        except AssertionError as fault:
            if self._graph is None or not str(fault).startswith("Guard failed"):
                raise
            self._graph = None  # it was traced for inputs of other shapes
            self._run(state, inputs)
        finally:
            self._take = None
        return seen

    def _run(self, state: Mapping[str, Tensor], inputs: Inputs) -> None:
        if self._graph is None:
            self._graph = self._tapped(inputs)
        args, kwargs = arguments(inputs)
        with torch.no_grad():
            functional_call(self._graph, {name: self._tensor(name, state) for name in self._names}, args, kwargs)

    def _tapped(self, inputs: Inputs) -> GraphModule:
        """The graph with a call after each node that a site names."""
        graph_module = trace(self._module, inputs).program.module()
        assert isinstance(graph_module, GraphModule)
        graph = graph_module.graph
        nodes = {name: node for node, name in node_names(graph).items()}
        for name in {site.node: None for site in self.sites}:
            if name not in nodes:
                raise InputError(
                    f"symmetry: the trace of {type(self._module).__name__} has no operation '{name}'; the symmetry is "
                    "of another model or version of PyTorch: derive it again"
                )
            changed_later = any(is_mutable(user) for user in nodes[name].users)
            with graph.inserting_after(nodes[name]):
                graph.call_function(self._keep, (name, nodes[name], changed_later))
        graph_module.recompile()
        read = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
        own = tensors_of(self._module)
        self._names = {}
        for name in [name for name in own if name in read]:
            tied = [other for other in own if own[other] is own[name]]
            if self._names.keys().isdisjoint(tied):
                self._names[name] = tied
        return graph_module

    def _tensor(self, name: str, state: Mapping[str, Tensor]) -> Tensor:
        """A tensor of the model, which may have it under another of its names."""
        for tied in self._names[name]:
            if tied in state:
                return state[tied]
        raise InputError(f"the model to observe has no tensor '{name}', which {type(self._module).__name__} reads")

    def _keep(self, name: str, value: Tensor, changed_later: bool) -> None:
        assert self._take is not None
        self._take(name, value.clone() if changed_later and self._copies else value)


def model_inputs(batch: Any) -> Inputs:
    """The inputs in a batch: the batch itself, its first item (labels follow), or named inputs."""
    if isinstance(batch, Mapping):
        return batch
    return (batch,) if isinstance(batch, Tensor) else (batch[0],)
