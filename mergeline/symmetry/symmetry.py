"""The unit symmetry of a module: which units may change places without changing what the module computes.

A *family* is a set of units under one permutation. A family may lie `over` others (the inner units of each
attention head): then it has one permutation for every unit of those. Every parameter axis has a *layout* in terms
of families. A *unit group* is what is matched at once: the units along one path of families, outer to inner.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import yaml
from torch import Tensor, nn

from mergeline.errors import InputError
from mergeline.symmetry.layout import Fixed, Layout, families_of, parse, terms, width

if TYPE_CHECKING:
    from mergeline.alignment.alignment import Alignment

PRODUCER, CONSUMER, ELEMENTWISE = "out", "in", "elt"  # writes units, reads units, scales or shifts units


@dataclass(frozen=True)
class Family:
    """`size` units under one permutation; one permutation for each combination of units of `over`."""

    name: str
    size: int
    over: tuple[str, ...] = ()


@dataclass(frozen=True)
class ParameterLayout:
    """Layout and role (out, in, elt or '') of each axis of one tensor; `tied` are other names of the same tensor."""

    dims: tuple[Layout, ...]
    roles: tuple[str, ...]
    tied: tuple[str, ...] = ()


@dataclass(frozen=True)
class Site:
    """Where the units of a group show as activations: axis `dim` of the input of the submodule `module`."""

    module: str
    dim: int
    group: str


@dataclass(frozen=True)
class Axis:
    """Positions [start, start + size) of axis `dim` of tensor `param` hold the units of a group, in a role."""

    param: str
    dim: int
    role: str
    start: int
    size: int


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
    """Families, the layout of every tensor that carries units, and where each group can be observed."""

    families: dict[str, Family]
    parameters: dict[str, ParameterLayout]
    sites: tuple[Site, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, layout in self.parameters.items():
            for family in (f for dim in layout.dims for f in families_of(dim)):
                if family not in self.families:
                    raise InputError(f"symmetry: tensor '{name}' names the family '{family}', which is not declared")
        for site in self.sites:
            if site.group not in self.groups:
                raise InputError(
                    f"symmetry: the site '{site.module}' shows the group '{site.group}', which has no axes"
                )

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Number of units of each family."""
        return {name: family.size for name, family in self.families.items()}

    @cached_property
    def groups(self) -> dict[str, UnitGroup]:
        """Unit groups by name, in the order in which the parameters mention them."""
        axes: dict[tuple[str, ...], list[Axis]] = {}
        for param, layout in self.parameters.items():
            for dim, (expression, role) in enumerate(zip(layout.dims, layout.roles, strict=True)):
                for term in terms(expression, self.sizes):
                    axes.setdefault(term.path, []).append(Axis(param, dim, role, term.start, term.size))
        return {name: self._group(name, path, axes[path]) for path, name in _names(axes).items()}

    def _group(self, name: str, path: tuple[str, ...], axes: list[Axis]) -> UnitGroup:
        blocks = self.sizes[path[0]] if len(path) > 1 else 1
        return UnitGroup(name, axes[0].size, blocks, path, tuple(axes))

    def copies(self, family: str) -> int:
        """How many independent permutations a family has: one per combination of the units it lies over."""
        return math.prod(self.sizes[outer] for outer in self.families[family].over)

    def log10_order(self) -> float:
        """log10 of the number of permutations that are allowed."""
        return sum(
            self.copies(name) * math.lgamma(family.size + 1) / math.log(10) for name, family in self.families.items()
        )

    def identity(self) -> dict[str, Tensor]:
        """The permutation of each family that moves nothing, int64 [sizes of `over`..., size]."""
        return {
            name: torch.arange(family.size).expand(*(self.sizes[o] for o in family.over), family.size).clone()
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

    def verify(self, module: nn.Module, example_inputs: Sequence[Tensor], seed: int = 0) -> float:
        """Largest relative change of the outputs under random permutations; see `mergeline.symmetry.verify`."""
        from mergeline.symmetry.verify import output_change

        return output_change(self, module, example_inputs, seed=seed)

    def to_yaml(self) -> str:
        """The symmetry as text made for people: families, then each tensor's axes, then where to observe."""
        document = {
            "families": {
                name: {"size": family.size, **({"over": list(family.over)} if family.over else {})}
                for name, family in self.families.items()
            },
            "parameters": {
                name: {
                    "dims": [str(dim) for dim in layout.dims],
                    "roles": list(layout.roles),
                    **({"tied": list(layout.tied)} if layout.tied else {}),
                }
                for name, layout in self.parameters.items()
            },
            "sites": [{"module": site.module, "dim": site.dim, "group": site.group} for site in self.sites],
            "notes": self.notes,
        }
        return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=120)

    @staticmethod
    def from_yaml(text: str) -> Symmetry:
        """Read what `to_yaml` wrote, perhaps edited. Raises InputError with the place of the fault."""
        document = yaml.safe_load(text)
        try:
            families = {
                name: Family(name, int(entry["size"]), tuple(entry.get("over", ())))
                for name, entry in document["families"].items()
            }
            parameters = {
                name: ParameterLayout(
                    tuple(parse(dim) for dim in entry["dims"]), tuple(entry["roles"]), tuple(entry.get("tied", ()))
                )
                for name, entry in document["parameters"].items()
            }
            sites = tuple(
                Site(entry["module"], int(entry["dim"]), entry["group"]) for entry in document.get("sites") or ()
            )
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as fault:
            raise InputError(f"symmetry: the text is not a symmetry as to_yaml writes it ({fault!r})") from fault
        return Symmetry(families, parameters, sites, dict(document.get("notes") or {}))

    def check_shapes(self, source: str, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raise InputError, naming the first tensor of `source` that does not have the shape of its layout."""
        for name, layout in self.parameters.items():
            expected = tuple(width(dim, self.sizes) for dim in layout.dims)
            if name not in shapes:
                raise InputError(f"{source}: tensor '{name}' of the architecture is missing")
            if shapes[name] != expected:
                raise InputError(
                    f"{source}: tensor '{name}' has shape {list(shapes[name])}, the architecture says {list(expected)}"
                )


def _names(paths: dict[tuple[str, ...], list[Axis]]) -> dict[tuple[str, ...], str]:
    """A group is called like its innermost family; where two paths end alike, by the whole path."""
    last = [path[-1] for path in paths]
    return {path: path[-1] if last.count(path[-1]) == 1 else " * ".join(path) for path in paths}


def _derangement(size: int, generator: torch.Generator) -> Tensor:
    """A random cyclic order applied as a permutation: no unit stays in place (for size > 1)."""
    cycle = torch.randperm(size, generator=generator)
    permutation = torch.empty_like(cycle)
    permutation[cycle] = cycle.roll(-1)
    return permutation


class _Dumper(yaml.SafeDumper):
    """Lists of scalars on one line: one line per tensor entry."""


def _represent_list(dumper: yaml.SafeDumper, items: list[object]) -> yaml.Node:
    flow = all(isinstance(item, str | int) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flow)


_Dumper.add_representer(list, _represent_list)


def parameter_layout(dims: Sequence[str], roles: Sequence[str]) -> ParameterLayout:
    """Shorthand for specs written by hand: `parameter_layout(["stream", "_3"], ["out", ""])`."""
    return ParameterLayout(tuple(parse(dim) for dim in dims), tuple(roles))


def carries_units(layout: ParameterLayout) -> bool:
    """Whether any axis of the tensor has units that can move."""
    return any(not isinstance(dim, Fixed) for dim in layout.dims)


def iter_names(symmetry: Symmetry, name: str) -> Iterator[str]:
    """The name of a tensor and the names tied to it."""
    yield name
    yield from symmetry.parameters[name].tied
