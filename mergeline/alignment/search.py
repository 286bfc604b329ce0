"""The state of the search for an alignment: match linked groups, given where their neighbours are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor

from mergeline.alignment.fold import Zip
from mergeline.matching.linked import Evidence, connected, match_linked
from mergeline.matching.match import Method, zip_models
from mergeline.symmetry.layout import extent, families_of, is_counted
from mergeline.symmetry.permute import group_index
from mergeline.symmetry.symmetry import Symmetry, UnitGroup

Similarity = Callable[[str], Tensor | None]
"""Group -> similarity of its units in all models: [units, n * units] to permute, [n * units, n * units] to zip.

None where nothing is known about a group; it then has no say in the matching of those that are linked to it.
"""


@dataclass(frozen=True)
class Matcher:
    """How units are matched; the options of zip as in `match_units`. whole: families whose units are not merged."""

    method: Method = "permute"
    reduce: float | None = None
    decay: float = 0.5
    budget: float = 1.0
    whole: frozenset[str] = frozenset()


@dataclass(frozen=True)
class State:
    """Where the units of every family go, and the value each group had when it was last matched.

    marks: a number for every family that changes when its units move. seen: for each linked set, the marks of its
    neighbours when it was matched: while they are the same, matching it again would change nothing.
    """

    permutations: tuple[dict[str, Tensor], ...]
    zips: dict[str, Zip] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)
    seen: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def copy(self) -> State:
        """A state that can be changed without changing this one."""
        return State(
            tuple(dict(families) for families in self.permutations),
            dict(self.zips),
            dict(self.values),
            dict(self.marks),
            dict(self.seen),
        )

    @property
    def objective(self) -> float:
        """Mean value of the groups that were matched."""
        return sum(self.values.values()) / max(len(self.values), 1)


class Search:
    """Matches the linked sets of a symmetry's groups, one by one, changing the current state."""

    def __init__(self, symmetry: Symmetry, models: int, matcher: Matcher) -> None:
        self.symmetry = symmetry
        self.models = models
        self.matcher = matcher
        self.sets = linked_sets(symmetry)
        self.set_of = {group.name: number for number, groups in enumerate(self.sets) for group in groups}
        self.state = State(tuple(symmetry.identity() for _ in range(models)))
        self._neighbours = [_neighbours(symmetry, groups) for groups in self.sets]
        self._numbers = count(1)

    def match(self, number: int, similarity: Similarity) -> bool:
        """Match a linked set by the similarity of its groups' units; says whether any unit moved.

        A set may be its own neighbour (a square matrix on a stream): what counts is where its units were before.
        """
        marks = self._marks(number)
        found = {group.name: similarity(group.name) for group in self.sets[number]}
        tables = {name: table for name, table in found.items() if table is not None}
        groups = [group for group in self.sets[number] if group.name in tables]
        moved = set[str]()
        if not {name for group in groups for name in group.structure} <= set(self._zipped(groups)):
            moved |= self._permute(groups, tables)
        if self.matcher.method == "zip":
            moved |= self._zip(groups, tables)
        self.state.seen[number] = marks
        return bool(moved)

    def is_settled(self, number: int) -> bool:
        """Whether nothing moved around a linked set since it was matched."""
        return self.state.seen.get(number) == self._marks(number)

    def _marks(self, number: int) -> tuple[int, ...]:
        return tuple(self.state.marks.get(family, 0) for family in self._neighbours[number])

    def _permute(self, groups: Sequence[UnitGroup], tables: Mapping[str, Tensor]) -> set[str]:
        """Assign the units of every model to those of model 0, family by family."""
        over = {name: family.over for name, family in self.symmetry.families.items()}
        moved = set()
        for model in range(1, self.models):
            evidence = [self._evidence(group, tables[group.name], model) for group in groups]
            zipped = self._zipped(groups)
            for family, permutation in match_linked(evidence, over).items():
                if family not in zipped and not torch.equal(self.state.permutations[model][family], permutation):
                    self.state.permutations[model][family] = permutation
                    self.state.marks[family] = next(self._numbers)
                    moved.add(family)
        for group in groups:
            self.state.values[group.name] = self._matched_similarity(group, tables[group.name])
        return moved

    def _evidence(self, group: UnitGroup, table: Tensor, model: int) -> Evidence:
        """Similarity to model 0 by families; every group counts alike, whatever its size."""
        units = group.size
        sizes = [extent(name, self.symmetry.sizes) for name in group.structure]
        cross = table[:units, model * units : (model + 1) * units].double().cpu() / units
        return Evidence(group.structure, cross.reshape(*sizes, *sizes))

    def _matched_similarity(self, group: UnitGroup, table: Tensor) -> float:
        units, values = group.size, [1.0] if self.models == 1 else []
        for model in range(1, self.models):
            order = group_index(group.structure, self.symmetry, self.state.permutations[model])
            cross = table[:units, model * units : (model + 1) * units].double().cpu()
            values.append(float(cross[torch.arange(units), order].mean()))
        return sum(values) / len(values)

    def _zipped(self, groups: Sequence[UnitGroup]) -> list[str]:
        """The families whose units are merged: those that no others lie in."""
        if self.matcher.method != "zip":
            return []
        outer = {name for group in groups for name in group.structure[:-1]}
        inner = dict.fromkeys(group.structure[-1] for group in groups)
        return [name for name in inner if name not in outer | self.matcher.whole and not is_counted(name)]

    def _zip(self, groups: Sequence[UnitGroup], tables: Mapping[str, Tensor]) -> set[str]:
        """Merge the units of inner families, in each set of outer units that were put together."""
        moved = set()
        for family in self._zipped(groups):
            own = [group for group in groups if group.structure[-1] == family]
            zipped, value = self._zip_family(family, own, tables)
            before = self.state.zips.get(family)
            if before is None or not torch.equal(before.assign, zipped.assign):
                self.state.zips[family] = zipped
                self.state.marks[family] = next(self._numbers)
                moved.add(family)
            for group in own:
                self.state.values[group.name] = value
        return moved

    def _zip_family(self, family: str, groups: Sequence[UnitGroup], tables: Mapping[str, Tensor]) -> tuple[Zip, float]:
        sizes, over = self.symmetry.sizes, self.symmetry.families[family].over
        lead = [extent(name, sizes) for name in over]
        # one row of similarity per set of outer units: mean over groups, and over outer units that share the inner ones
        inside = torch.stack([self._inside(group, tables[group.name].double().cpu(), over) for group in groups]).mean(0)
        options = self.matcher
        matchings = [
            zip_models(table, self.models, reduce=options.reduce, decay=options.decay, budget=options.budget)
            for table in inside
        ]
        assign = torch.stack([matching.assign.reshape(self.models, -1) for matching in matchings], dim=1)
        value = sum(matching.value for matching in matchings) / len(matchings)
        return Zip(assign.reshape(self.models, *lead, sizes[family]), matchings[0].width), value

    def _inside(self, group: UnitGroup, table: Tensor, over: Sequence[str]) -> Tensor:
        """Similarity of inner units in each set of outer units, [sets, n * inner units, n * inner units]."""
        path, sizes = group.structure, [extent(name, self.symmetry.sizes) for name in group.structure]
        if len(path) == 1:
            return table[None]
        sets, inner = [path.index(name) for name in over], len(path) - 1
        shared = [place for place in range(inner) if place not in sets]
        shape = [math.prod(sizes[place] for place in places) for places in (sets, shared)]
        units = []
        for model, permutations in enumerate(self.state.permutations):
            index = group_index(path, self.symmetry, permutations).reshape(sizes) + model * group.size
            units.append(index.permute(*sets, *shared, inner).reshape(*shape, sizes[inner]))
        rows = torch.cat(units, dim=2)
        return table[rows[..., :, None], rows[..., None, :]].mean(dim=1)


def linked_sets(symmetry: Symmetry) -> list[list[UnitGroup]]:
    """Groups that share families, or whose families lie over each other, belong together."""

    def families(group: UnitGroup) -> set[str]:
        own = {name for name in group.structure if not is_counted(name)}
        return own.union(o for name in own for o in symmetry.families[name].over if not is_counted(o))

    return connected(symmetry.groups.values(), families)


def _neighbours(symmetry: Symmetry, groups: Sequence[UnitGroup]) -> list[str]:
    """The families on the other axes of the tensors that hold a linked set: its weight similarity depends on them."""
    families: dict[str, None] = {}
    for axis in (axis for group in groups for axis in group.axes):
        layout = symmetry.parameters[axis.param]
        for dim, other in enumerate(layout.dims):
            if dim != axis.dim:
                families.update(dict.fromkeys(families_of(other)))
    return list(families)
