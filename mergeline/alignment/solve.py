"""Find the alignment: every group matched in weight space, activation space or both, sweep after sweep (MuDSC)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mergeline.alignment.alignment import Alignment
from mergeline.checkpoints.readers import Reader, open_checkpoint
from mergeline.errors import InputError
from mergeline.matching.match import Matching, match_units
from mergeline.similarity.activation import activation_similarity
from mergeline.similarity.weight import group_similarity
from mergeline.symmetry.symmetry import Symmetry, UnitGroup

Space = Literal["dual", "weight", "activation"]
FAILURES_ALLOWED = 5
"""Sweeps without a better objective before the search ends (as in the paper's program)."""


class Sweep(NamedTuple):
    """What a sweep reached: its number (0 first) and the mean matched similarity over the groups."""

    number: int
    objective: float


def align(
    modules: Sequence[nn.Module],
    symmetry: Symmetry,
    *,
    space: Space = "dual",
    method: Literal["permute"] = "permute",
    balance: float = 0.5,
    batches: Iterable[Tensor | Sequence[Tensor]] | None = None,
    sweeps: int = 100,
    seed: int = 0,
    order: Sequence[Sequence[str]] | None = None,
) -> Alignment:
    """Bring models of one architecture into the unit order of the first.

    modules: n models, the reference first; normalisation statistics as they are (see `reset_normalization`).
    space: which similarity decides: of weights, of activations on `batches`, or `balance` parts of the first and
    1 - balance of the second. order: the group names of each sweep, to replay a recorded run; otherwise drawn from
    `seed`. Raises InputError for options that do not fit together.
    """
    if space != "weight" and batches is None:
        raise InputError(f"align in {space} space needs calibration inputs: give `batches`")
    activations = None if batches is None or space == "weight" else activation_similarity(modules, symmetry, batches)
    readers = [open_checkpoint(module.state_dict()) for module in modules]
    return solve(
        readers,
        symmetry,
        space=space,
        method=method,
        balance=balance,
        activations=activations,
        sweeps=sweeps,
        seed=seed,
        order=order,
    )


def solve(
    readers: Sequence[Reader],
    symmetry: Symmetry,
    *,
    space: Space,
    method: Literal["permute"] = "permute",
    balance: float = 0.5,
    activations: Mapping[str, Tensor] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    sweeps: int = 100,
    seed: int = 0,
    order: Sequence[Sequence[str]] | None = None,
    on_sweep: Callable[[Sweep], None] | None = None,
) -> Alignment:
    """`align` on checkpoints and similarities that are at hand.

    activations: {group: [n * units, n * units]}. weights: {group: [units, (n - 1) * units]} in the given order of all
    groups, which spares the first computation. on_sweep: called after each sweep.
    """
    _check_options(symmetry, space, method, balance, activations)
    search = _Search(readers, symmetry, space, balance, activations or {}, weights or {})
    if space != "weight":
        search.match_activations()
    if space == "activation":
        return search.alignment(search.values, ())
    best, best_values, history, failures = search.permutations, search.values, list[float](), 0
    for number, groups in enumerate(_orders(symmetry, sweeps, seed, order)):
        before = search.permutations
        search.sweep(groups)
        objective = sum(search.values.values()) / len(search.values)
        if on_sweep:
            on_sweep(Sweep(number, objective))
        if not history or objective > max(history):
            best, best_values = search.permutations, search.values
        else:
            failures += 1
            # A sweep from the best state that moves nothing shows a fixed point: any order of groups repeats it.
            if failures == FAILURES_ALLOWED or (before is best and search.moved == 0):
                break
            search.permutations, search.values = best, best_values
        history.append(objective)
    search.permutations = best
    return search.alignment(best_values, tuple(history))


class _Search:
    """Current permutations of all models and the value each group had when it was last matched."""

    def __init__(
        self,
        readers: Sequence[Reader],
        symmetry: Symmetry,
        space: Space,
        balance: float,
        activations: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
    ) -> None:
        for reader in readers:
            symmetry.check_shapes(reader.source, {name: reader.shape(name) for name in reader.names()})
        self.readers = readers
        self.symmetry = symmetry
        self.balance = 1.0 if space == "weight" else balance
        self.activations = activations
        self.initial_weights = weights
        self.permutations: tuple[dict[str, Tensor], ...] = tuple(symmetry.identity() for _ in readers)
        self.values: dict[str, float] = {}
        self.moved = 0

    def alignment(self, values: Mapping[str, float], history: tuple[float, ...]) -> Alignment:
        return Alignment(self.symmetry, self.permutations, dict(values), history)

    def match_activations(self) -> None:
        """One matching per group in activation space alone: the start of the sweeps, or the whole result."""
        for name, group in self.symmetry.groups.items():
            units = group.size
            self._place(
                group, match_units(self.activations[name][:units], models=len(self.readers), groups=group.blocks)
            )

    def sweep(self, groups: Sequence[str]) -> None:
        """Match each group against the current order of its neighbours and replace it at once."""
        self.moved = 0
        self.permutations = tuple(dict(families) for families in self.permutations)
        self.values = dict(self.values)
        for name in groups:
            group = self.symmetry.groups[name]
            cross = self._weights(name) * self.balance
            if self.balance < 1:
                cross += (1 - self.balance) * self.activations[name][: group.size, group.size :]
            similarity = torch.cat([torch.eye(group.size), cross], dim=1)
            self._place(group, match_units(similarity, models=len(self.readers), groups=group.blocks))

    def _weights(self, name: str) -> Tensor:
        at_start = self.initial_weights and all(
            torch.equal(permutation, identity)
            for families in self.permutations
            for permutation, identity in zip(families.values(), self.symmetry.identity().values(), strict=True)
        )
        if at_start:
            return self.initial_weights[name]
        return group_similarity(self.readers, self.symmetry, name, self.permutations)

    def _place(self, group: UnitGroup, matching: Matching) -> None:
        """Store a matching as the permutations of the group's families."""
        self.values[group.name] = matching.value
        for model, places in enumerate(matching.assign.reshape(len(self.readers), group.size)):
            for family, permutation in _families(group, places).items():
                self.moved += not torch.equal(self.permutations[model][family], permutation)
                self.permutations[model][family] = permutation


def _families(group: UnitGroup, places: Tensor) -> dict[str, Tensor]:
    """Permutations (old unit at each new place) of the families of a group, from the new place of each old unit."""
    index = places.argsort()
    if group.blocks == 1:
        return {group.structure[0]: index}
    step = group.size // group.blocks
    tiles = index.reshape(group.blocks, step)
    outer, inner = group.structure
    return {outer: tiles[:, 0] // step, inner: tiles % step}


def _orders(
    symmetry: Symmetry, sweeps: int, seed: int, order: Sequence[Sequence[str]] | None
) -> Iterator[Sequence[str]]:
    """The group names of each sweep: as given, or shuffled from the seed."""
    if order is not None:
        for names in order[:sweeps]:
            if sorted(names) != sorted(symmetry.groups):
                raise InputError(f"order: a sweep must name every group once: {', '.join(symmetry.groups)}")
            yield names
        return
    names = list(symmetry.groups)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(sweeps):
        yield [names[i] for i in torch.randperm(len(names), generator=generator).tolist()]


def _check_options(
    symmetry: Symmetry, space: str, method: str, balance: float, activations: Mapping[str, Tensor] | None
) -> None:
    if space not in ("dual", "weight", "activation"):
        raise InputError(f"align.space: '{space}' is not known; use dual, weight or activation")
    if method != "permute":
        raise InputError(f"align.method: '{method}' is not known; use permute")
    if not 0 <= balance <= 1:
        raise InputError(f"align.balance: {balance} is not between 0 (activations only) and 1 (weights only)")
    if space != "weight":
        missing = sorted(set(symmetry.groups) - set(activations or {}))
        if missing:
            raise InputError(f"activation similarity is missing for the groups {', '.join(missing)}")
    used = [family for group in symmetry.groups.values() for family in group.structure]
    tied = sorted({family for family in used if used.count(family) > 1})
    if tied or any(len(group.structure) > 2 for group in symmetry.groups.values()):
        raise InputError(f"cannot align groups that share a family of units ({', '.join(tied)})")
