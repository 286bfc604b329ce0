"""The unit symmetry of a module: which units may change places without changing what the module computes.

A *family* is a set of units under one permutation. A family may lie `over` others (the inner units of each
attention head): then it has one permutation for every unit of those. Every parameter axis has a *layout* in terms
of families. A *unit group* is what is matched at once: the units along one path of families, outer to inner.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from mergeline.errors import InputError
from mergeline.symmetry.layout import Fixed, Layout, extent, families_of, is_counted, parse, width
from mergeline.symmetry.units import Family, Span, joined_spans, spans

if TYPE_CHECKING:
    from mergeline.alignment.alignment import Alignment
    from mergeline.symmetry.trace import Inputs

PRODUCER, CONSUMER, ELEMENTWISE = "out", "in", "elt"  # writes units, reads units, scales or shifts units


@dataclass(frozen=True)
class ParameterLayout:
    """Layout and role (out, in, both as 'in/out', elt or '') of each axis of a tensor; `tied`: its other names."""

    dims: tuple[Layout, ...]
    roles: tuple[str, ...]
    tied: tuple[str, ...] = ()


@dataclass(frozen=True)
class Site:
    """Where the units of a group show as activations: in the value of operation `node` of the trace.

    dims: the layouts of those of its axes that carry units. kind: whether the operation `at` reads the units there
    (use) or makes them (def: then it is `node` itself).
    """

    group: str
    node: str
    dims: tuple[tuple[int, Layout], ...]
    kind: Literal["use", "def"]
    at: str


@dataclass(frozen=True)
class Axis:
    """Axis `dim` of tensor `param` holds units of a group, in a role; `span` says at which positions."""

    param: str
    dim: int
    role: str
    span: Span


@dataclass(frozen=True)
class UnitGroup:
    """Units that are matched at once: `blocks` outer units of `size // blocks` inner units each."""

    name: str
    size: int
    blocks: int
    structure: tuple[str, ...]
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Symmetry:
    """Families, the layout of every tensor that carries units, and where each group can be observed.

    notes: what else a reader should know: why axes are fixed, operations without a rule, whether it was verified.
    """

    families: dict[str, Family]
    parameters: dict[str, ParameterLayout]
    sites: tuple[Site, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for family in self.families.values():
            for outer in family.over:
                if outer not in self.families and not is_counted(outer):
                    raise InputError(f"symmetry: family '{family.name}' lies over '{outer}', which is not declared")
        for name, layout in self.parameters.items():
            for mentioned in (f for dim in layout.dims for f in families_of(dim)):
                if mentioned not in self.families:
                    raise InputError(f"symmetry: tensor '{name}' names the family '{mentioned}', which is not declared")
        for site in self.sites:
            if site.group not in self.groups:
                raise InputError(f"symmetry: the site '{site.node}' shows the group '{site.group}', which has no axes")

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Number of units of each family."""
        return {name: family.size for name, family in self.families.items()}

    @cached_property
    def active(self) -> frozenset[str]:
        """Families that some parameter writes or reads; others only label places, such as register tokens."""
        return frozenset(
            family
            for layout in self.parameters.values()
            for dim, role in zip(layout.dims, layout.roles, strict=True)
            for family in families_of(dim)
            if role not in ("", ELEMENTWISE)
        )

    @cached_property
    def groups(self) -> dict[str, UnitGroup]:
        """Unit groups by name, in the order in which the parameters mention them."""
        axes: dict[tuple[str, ...], list[Axis]] = {}
        for param, layout in self.parameters.items():
            for span in spans(dict(enumerate(layout.dims)), self.families):
                axes.setdefault(span.path, []).append(Axis(param, span.dim, layout.roles[span.dim], span))
        return {name: self._group(name, path, axes[path]) for path, name in _names(axes).items()}

    def _group(self, name: str, path: tuple[str, ...], axes: list[Axis]) -> UnitGroup:
        counts = [extent(family, self.sizes) for family in path]
        return UnitGroup(name, math.prod(counts), counts[0] if len(counts) > 1 else 1, path, tuple(axes))

    def site_spans(self, site: Site) -> list[Span]:
        """The positions of a site's group in its activations. Raises InputError where they do not show it."""
        path = self.groups[site.group].structure
        spans_shown = joined_spans(dict(site.dims), self.families, self.active)
        found = [span for span in spans_shown if span.path == path]
        if not found:
            raise InputError(f"symmetry: the activations '{site.node}' do not show the group '{site.group}'")
        return found

    def copies(self, family: str) -> int:
        """How many independent permutations a family has: one per combination of the units it lies over."""
        return math.prod(extent(outer, self.sizes) for outer in self.families[family].over)

    def log10_order(self) -> float:
        """log10 of the number of permutations that are allowed."""
        return sum(
            self.copies(name) * math.lgamma(family.size + 1) / math.log(10) for name, family in self.families.items()
        )

    def identity(self) -> dict[str, Tensor]:
        """The permutation of each family that moves nothing, int64 [sizes of `over`..., size]."""
        return {
            name: torch.arange(family.size)
            .expand(*(extent(outer, self.sizes) for outer in family.over), family.size)
            .clone()
            for name, family in self.families.items()
        }

    def random_permutations(self, seed: int = 0, only: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Random permutations of every family (or of those in `only`) that leave as few units in place as they can."""
        generator = torch.Generator().manual_seed(seed)
        permutations = self.identity()
        for name in self.families if only is None else only:
            rows = permutations[name].reshape(-1, self.sizes[name])
            permutations[name] = torch.stack([_derangement(len(row), generator) for row in rows]).reshape(
                permutations[name].shape
            )
        return permutations

    def random_alignment(self, seed: int = 0) -> Alignment:
        """One random element of the group, for model index 0: applying it never changes the function."""
        from mergeline.alignment.alignment import Alignment

        return Alignment(self, (self.random_permutations(seed),))

    def verify(self, module: nn.Module, example_inputs: Inputs, seed: int = 0) -> float:
        """Largest relative change of the outputs under random permutations; see `mergeline.symmetry.verify`."""
        from mergeline.symmetry.verify import output_change

        return output_change(self, module, example_inputs, seed=seed)

    def to_yaml(self) -> str:
        """The symmetry as text made for people: families, then each tensor's axes, then where to observe."""
        from mergeline.symmetry.text import to_yaml

        return to_yaml(self)

    @staticmethod
    def from_yaml(text: str, source: str = "symmetry") -> Symmetry:
        """Read what `to_yaml` wrote, perhaps edited. Raises InputError with the place of the fault in `source`."""
        from mergeline.symmetry.text import from_yaml

        return from_yaml(text, source)

    def check_shapes(self, source: str, shapes: dict[str, tuple[int, ...]], *, units_only: bool = False) -> None:
        """Raise InputError, naming the first tensor of `source` that does not have the shape of its layout.

        units_only: axes without units may have any length, as the outputs of a task's own head.
        """
        for name, layout in self.parameters.items():
            expected = tuple(width(dim, self.sizes) for dim in layout.dims)
            if name not in shapes:
                raise InputError(f"{source}: tensor '{name}' of the architecture is missing")
            shape = shapes[name]
            if units_only and len(shape) == len(expected):
                free = [isinstance(dim, Fixed) for dim in layout.dims]
                expected = tuple(n if any_length else m for n, m, any_length in zip(shape, expected, free, strict=True))
            if shape != expected:
                raise InputError(
                    f"{source}: tensor '{name}' has shape {list(shape)}, the architecture says {list(expected)}"
                )


def _names(paths: Mapping[tuple[str, ...], object]) -> dict[tuple[str, ...], str]:
    """A group is called like its innermost family; where two paths end alike, by the whole path."""
    last = [path[-1] for path in paths]
    return {path: path[-1] if last.count(path[-1]) == 1 else " * ".join(path) for path in paths}


def _derangement(size: int, generator: torch.Generator) -> Tensor:
    """A random cyclic order applied as a permutation: no unit stays in place (for size > 1)."""
    cycle = torch.randperm(size, generator=generator)
    permutation = torch.empty_like(cycle)
    permutation[cycle] = cycle.roll(-1)
    return permutation


def parameter_layout(dims: Sequence[str], roles: Sequence[str]) -> ParameterLayout:
    """Shorthand for specs written by hand: `parameter_layout(["stream", "_3"], ["out", ""])`."""
    return ParameterLayout(tuple(parse(dim) for dim in dims), tuple(roles))
