"""Match groups that share families of units as one problem: the heads of attention are ordered once for q, k and v.

A group is a path of families, outer to inner: `heads * qk`, `heads * v`. Each pair of heads (one of either model) is
worth what its inner units reach when they are matched inside the pair, over all groups; the heads are assigned by
these values. This is exact where families lie over each other. Where two families of a path do not (heads, and inner
units in one order for all heads), the best is found for one while the others stay, in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from mergeline.errors import InputError
from mergeline.matching.assignment import assign
from mergeline.symmetry.layout import is_counted

ROUNDS = 20
"""How often families that do not lie over each other are matched in turn, at most."""

GAIN = 1e-9
"""Less than this is rounding, not a better matching."""


Item = TypeVar("Item")


class Evidence(NamedTuple):
    """What speaks for matching the units along a path of families.

    similarity [reference's sizes along the path..., model's sizes...], float64.
    """

    path: tuple[str, ...]
    similarity: Tensor


@dataclass(frozen=True)
class Solution:
    """Total similarity, and the unit of the model at each place of the reference, for each family.

    permutations: int64 [sizes of the outer families..., size], outer families in the order in which they were solved:
    `nesting` names them.
    """

    value: float
    permutations: Mapping[str, Tensor]
    nesting: Mapping[str, tuple[str, ...]]


Over = Mapping[str, tuple[str, ...]]
Fixed = Mapping[str, Tensor]


def match_linked(evidence: Sequence[Evidence], over: Over) -> dict[str, Tensor]:
    """The permutation of each family that makes the total similarity of all groups largest.

    over: for each family the families (or counted positions, `#4`) that it lies over. Returns int64 [sizes of `over`
    ..., size]: the unit of the model at each place, inner ones by the new place of their outer unit.
    Raises InputError for families that lie over others which do not lie over each other.
    """
    solution = _solve(list(evidence), over, {})
    ordered = {}
    for name, permutation in solution.permutations.items():
        nesting = solution.nesting[name]
        if not is_counted(name):
            ordered[name] = permutation.permute(*(nesting.index(outer) for outer in over[name]), len(nesting))
    return ordered


def _solve(evidence: Sequence[Evidence], over: Over, fixed: Fixed) -> Solution:
    """Parts that share no free family are solved by themselves."""
    solutions = [_solve_part(part, over, fixed) for part in _parts(evidence, fixed)]
    return Solution(
        sum(solution.value for solution in solutions),
        {name: x for solution in solutions for name, x in solution.permutations.items()},
        {name: x for solution in solutions for name, x in solution.nesting.items()},
    )


def _parts(evidence: Sequence[Evidence], fixed: Fixed) -> list[list[Evidence]]:
    return connected(evidence, lambda item: {name for name in item.path if name not in fixed and not is_counted(name)})


def connected(items: Iterable[Item], names: Callable[[Item], Set[str]]) -> list[list[Item]]:
    """The items in sets: those that have a name in common, directly or through others, are together."""
    sets: list[tuple[set[str], list[Item]]] = []
    for item in items:
        own = set(names(item))
        linked = [entry for entry in sets if own & entry[0]]
        sets = [entry for entry in sets if entry not in linked]
        together = [other for entry in linked for other in entry[1]]
        sets.append((own.union(*(entry[0] for entry in linked)), [*together, item]))
    return [together for _, together in sets]


def _solve_part(evidence: list[Evidence], over: Over, fixed: Fixed) -> Solution:
    families = list(dict.fromkeys(name for item in evidence for name in item.path))
    if not families:
        return Solution(sum(float(item.similarity) for item in evidence), {}, {})
    tops = [name for name in families if not set(over.get(name, ())) & set(families)]
    if not tops:
        raise InputError(f"cannot match the families {', '.join(families)}: they lie over each other")
    outer = {outer for name in families for outer in over.get(name, ())}
    for name in tops:
        if name not in outer and (name in fixed or is_counted(name)):
            return _solve_part([_contract(item, name, fixed.get(name)) for item in evidence], over, fixed)
    free = [name for name in tops if name not in fixed and not is_counted(name)]
    if len(tops) == 1 or len(free) <= 1:
        return _nest(free[0] if free else tops[0], evidence, over, fixed)
    return _in_turn(free, evidence, over, fixed)


def _contract(item: Evidence, name: str, order: Tensor | None) -> Evidence:
    """The evidence summed over the units of a family whose matching is known (none: in place)."""
    if name not in item.path:
        return item
    place, similarity = item.path.index(name), item.similarity
    if order is not None:
        similarity = similarity.index_select(len(item.path) + place, order)
    matched = similarity.diagonal(dim1=place, dim2=len(item.path) + place).sum(dim=-1)
    return Evidence(item.path[:place] + item.path[place + 1 :], matched)


def _in_turn(tops: Sequence[str], evidence: list[Evidence], over: Over, fixed: Fixed) -> Solution:
    """Each family first as if the others could differ from unit to unit; then each while the others stay."""
    found = dict(fixed)
    for name in tops:
        found[name] = _nest(name, evidence, over, found).permutations[name]
    value = -float("inf")
    for _ in range(ROUNDS):
        before = value
        for name in tops:
            solution = _solve(evidence, over, {other: x for other, x in found.items() if other != name})
            if solution.value > value + GAIN:
                value, found[name] = solution.value, solution.permutations[name]
        if value <= before + GAIN:
            break
    best = _solve(evidence, over, found)  # the families that lie over these
    kept = {name: found[name] for name in tops}
    return Solution(best.value, {**best.permutations, **kept}, {**best.nesting, **dict.fromkeys(tops, ())})


def _nest(top: str, evidence: list[Evidence], over: Over, fixed: Fixed) -> Solution:
    """Solve what is left for every pair of units of a family, then assign its units by the values reached."""
    size = next(item.similarity.shape[item.path.index(top)] for item in evidence if top in item.path)
    if all(item.path == (top,) for item in evidence) and top not in fixed and not is_counted(top):
        table = torch.stack([item.similarity for item in evidence]).sum(dim=0)
        order = assign(table)
        return Solution(float(table[torch.arange(size), order].sum()), {top: order}, {top: ()})
    inner_over = {name: tuple(outer for outer in outers if outer != top) for name, outers in over.items()}
    known = torch.arange(size) if is_counted(top) else fixed.get(top)
    pairs = [(i, j) for i in range(size) for j in (range(size) if known is None else [int(known[i])])]
    inner = {
        (i, j): _solve(
            [_inside(item, top, i, j, size) for item in evidence], inner_over, _fixed_inside(fixed, over, top, i)
        )
        for i, j in pairs
    }
    if known is None:
        known = assign(torch.tensor([[inner[i, j].value for j in range(size)] for i in range(size)]).double())
    chosen = [inner[i, int(j)] for i, j in enumerate(known)]
    permutations: dict[str, Tensor] = {top: known}
    nesting: dict[str, tuple[str, ...]] = {top: ()}
    for name in chosen[0].permutations:
        if top in over.get(name, ()):
            permutations[name] = torch.stack([solution.permutations[name] for solution in chosen])
            nesting[name] = (top, *chosen[0].nesting[name])
    return Solution(sum(solution.value for solution in chosen), permutations, nesting)


def _inside(item: Evidence, top: str, i: int, j: int, size: int) -> Evidence:
    """The evidence inside unit i of the reference and unit j of the model; what has no such units is shared out."""
    if top not in item.path:
        return Evidence(item.path, item.similarity / size)
    place = item.path.index(top)
    similarity = item.similarity.select(len(item.path) + place, j).select(place, i)
    return Evidence(item.path[:place] + item.path[place + 1 :], similarity)


def _fixed_inside(fixed: Fixed, over: Over, top: str, i: int) -> dict[str, Tensor]:
    """What stays inside unit i of a family."""
    return {name: x[i] if top in over.get(name, ()) else x for name, x in fixed.items() if name != top}
