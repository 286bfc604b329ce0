"""Find the alignment: every group matched in weight space, activation space or both, sweep after sweep (MuDSC)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mergeline.alignment.alignment import Alignment
from mergeline.alignment.fold import EPSILON, Fold
from mergeline.alignment.parity import untied, whole_families
from mergeline.alignment.search import Matcher, Search
from mergeline.checkpoints.readers import Reader, open_checkpoint
from mergeline.errors import InputError, nearest
from mergeline.matching.match import Method, check_zip_options
from mergeline.similarity.activation import activation_similarity
from mergeline.similarity.weight import WeightRows
from mergeline.similarity.zipped import ZippedRows
from mergeline.symmetry.symmetry import Symmetry
from mergeline.symmetry.tap import Consumers

Space = Literal["dual", "weight", "activation"]
FAILURES_ALLOWED = 5
"""Sweeps without a better objective before the search ends (as in the paper's program)."""

DECIMALS = 6
"""Of similarities that are told: further ones depend on the number of threads."""


class Sweep(NamedTuple):
    """What a sweep reached: its number (0 first) and the mean matched similarity over the groups."""

    number: int
    objective: float


def align(
    modules: Sequence[nn.Module],
    symmetry: Symmetry,
    *,
    space: Space = "dual",
    method: Method = "permute",
    balance: float = 0.5,
    batches: Iterable[Tensor | Sequence[Tensor]] | None = None,
    reduce: float | None = None,
    decay: float = 0.5,
    budget: float = 1.0,
    sweeps: int = 100,
    seed: int = 0,
    order: Sequence[Sequence[str]] | None = None,
    parity: Literal["authors"] | None = None,
) -> Alignment:
    """Bring models of one architecture into the unit order of the first, or onto merged units.

    modules: n models, the reference first; normalisation statistics as they are (see `reset_normalization`).
    space: which similarity decides: of weights, of activations on `batches`, or `balance` parts of the first and
    1 - balance of the second. method, reduce, decay, budget: see `match_units`. order: the group names of each sweep,
    to replay a recorded run; otherwise drawn from `seed`. parity: `authors` repeats what their program does otherwise:
    heads of queries and values apart (which changes the function), keys measured for queries, zipped neighbours read
    and written the other way round in weight similarity, and merged weights smaller by 5e-6.
    Raises InputError for options that do not fit together.
    """
    matcher, activations = Matcher(method, reduce, decay, budget), None
    _check_options(space, matcher, balance, parity)
    if not modules:
        raise InputError("align: there are no models")
    if space != "weight" and batches is None:
        raise InputError(f"align in {space} space needs calibration inputs: give `batches`")
    if batches is not None and space != "weight":
        consumers: Consumers = "last value" if parity else "last"
        activations = activation_similarity(modules, symmetry, batches, consumers=consumers)
    if parity is not None:
        symmetry, matcher = untied(symmetry), replace(matcher, whole=whole_families(modules[0], symmetry))
    return solve(
        [open_checkpoint(module.state_dict()) for module in modules],
        symmetry,
        space=space,
        matcher=matcher,
        balance=balance,
        activations=activations,
        sweeps=sweeps,
        seed=seed,
        order=order,
        parity=parity,
    )


def solve(
    readers: Sequence[Reader],
    symmetry: Symmetry,
    *,
    space: Space,
    matcher: Matcher | None = None,
    balance: float = 0.5,
    activations: Mapping[str, Tensor] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    sweeps: int = 100,
    seed: int = 0,
    order: Sequence[Sequence[str]] | None = None,
    parity: Literal["authors"] | None = None,
    on_sweep: Callable[[Sweep], None] | None = None,
) -> Alignment:
    """`align` on checkpoints and similarities that are at hand.

    activations: {group: [n * units, n * units]}. weights: the same in the given order of all groups, which spares the
    first computation. on_sweep: called after each sweep. symmetry: as it is to be used; `align` unties it for parity.
    """
    matcher = matcher or Matcher()
    _check_names(readers)
    _check_options(space, matcher, balance, parity)
    _check_similarities(symmetry, space, activations, weights)
    orders = _orders(symmetry, sweeps, seed, order)
    search = Search(symmetry, len(readers), matcher)
    evidence = _Evidence(
        search, WeightRows(readers, symmetry), space, balance, activations or {}, weights or {}, parity
    )
    history: list[float] = []
    if space != "weight":
        for number in range(len(search.sets)):
            search.match(number, evidence.in_activation_space)
        search.state.seen.clear()
    if space != "activation" and search.sets:
        history = _sweep(search, evidence, orders, on_sweep)
    state = search.state
    epsilon = EPSILON if parity and matcher.method == "zip" else 0.0
    values = {group: round(value, DECIMALS) for group, value in state.values.items()}
    rounded = tuple(round(objective, DECIMALS) for objective in history)
    return Alignment(symmetry, state.permutations, values, rounded, state.zips, epsilon)


def _sweep(
    search: Search,
    evidence: _Evidence,
    orders: Iterable[Sequence[str]],
    on_sweep: Callable[[Sweep], None] | None,
) -> list[float]:
    """Sweep over the groups, each matched against the current place of its neighbours and replaced at once.

    Every sweep starts from the best state so far. Ends after FAILURES_ALLOWED sweeps that were not better, or where a
    sweep from the best state moves nothing: any other order would repeat it. Returns the objective of each sweep.
    """
    best, history, failures = search.state, list[float](), 0
    for number, names in enumerate(orders):
        search.state = best.copy()
        moved = False
        for linked in dict.fromkeys(search.set_of[name] for name in names):
            if not search.is_settled(linked):
                moved |= search.match(linked, evidence)
        objective = search.state.objective
        if on_sweep:
            on_sweep(Sweep(number, objective))
        better = not history or objective > max(history)
        history.append(objective)
        if better:
            best = search.state
        else:
            failures += 1
            if failures == FAILURES_ALLOWED or (not moved and objective == best.objective):
                break
    search.state = best
    return history


class _Evidence:
    """The similarity that decides, under the alignment of the moment."""

    def __init__(
        self,
        search: Search,
        rows: WeightRows,
        space: Space,
        balance: float,
        activations: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        parity: str | None,
    ) -> None:
        self.search = search
        self.rows = rows
        self.zipped = ZippedRows(rows)
        self.balance = 1.0 if space == "weight" else balance
        self.activations = activations
        self.weights = weights
        self.parity = parity
        self.permutes = search.matcher.method == "permute"

    def __call__(self, group: str) -> Tensor:
        """Balanced similarity of a group: all rows to zip, those of model 0 to permute."""
        similarity = self._in_weight_space(group)
        activations = self.in_activation_space(group) if self.balance < 1 else None
        if activations is not None:
            similarity = self.balance * similarity + (1 - self.balance) * activations
        return similarity

    def in_activation_space(self, group: str) -> Tensor | None:
        """Similarity of activations; none for groups that never show in them (tables of positions)."""
        return self._needed(group, self.activations[group]) if group in self.activations else None

    def _needed(self, group: str, similarity: Tensor) -> Tensor:
        return similarity[: self.search.symmetry.groups[group].size] if self.permutes else similarity

    def _in_weight_space(self, group: str) -> Tensor:
        state = self.search.state
        if self.weights and not state.marks:  # nothing has moved yet
            return self._needed(group, self.weights[group])
        if self.permutes:
            cross = self.rows.cross(group, state.permutations)
            return torch.cat([torch.eye(len(cross)), cross], dim=1)
        fold = Fold(
            self.search.symmetry,
            state.zips,
            self.search.models,
            epsilon=EPSILON if self.parity else 0.0,
            swap=self.parity is not None,
        )
        return self.zipped.similarity(group, state.permutations, fold)


def _orders(
    symmetry: Symmetry, sweeps: int, seed: int, order: Sequence[Sequence[str]] | None
) -> Iterable[Sequence[str]]:
    """The group names of each sweep: as given, or shuffled from the seed. Raises InputError where one is missing."""
    if sweeps < 1 or (order is not None and not order):
        raise InputError("align: there must be at least one sweep")
    if order is None:
        return _shuffled(list(symmetry.groups), sweeps, seed)
    for names in order:
        if sorted(names) != sorted(symmetry.groups):
            raise InputError(f"order: a sweep must name every group once: {', '.join(symmetry.groups)}")
    return order[:sweeps]


def _shuffled(names: Sequence[str], sweeps: int, seed: int) -> Iterator[Sequence[str]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(sweeps):
        yield [names[i] for i in torch.randperm(len(names), generator=generator).tolist()]


def _check_names(readers: Sequence[Reader]) -> None:
    """Raise InputError where a model lacks a tensor of the first, or has one more."""
    first = set(readers[0].names())
    for reader in readers[1:]:
        for name in sorted(first.symmetric_difference(reader.names())):
            has, lacks = (readers[0], reader) if name in first else (reader, readers[0])
            raise InputError(
                f"{lacks.source}: has no tensor '{name}', which {has.source} has; models of one architecture have the "
                f"same tensors{nearest(name, lacks.names())}"
            )


def _check_options(space: str, matcher: Matcher, balance: float, parity: str | None) -> None:
    if space not in ("dual", "weight", "activation"):
        raise InputError(f"align.space: '{space}' is not known; use dual, weight or activation")
    if matcher.method not in ("permute", "zip"):
        raise InputError(f"align.method: '{matcher.method}' is not known; use permute or zip")
    if parity not in (None, "authors"):
        raise InputError(f"align.parity: {parity!r} is not known; use 'authors', or None")
    check_zip_options(matcher.reduce, matcher.decay, matcher.budget)
    if not isinstance(balance, int | float) or not 0 <= balance <= 1:
        raise InputError(f"align.balance: {balance} is not between 0 (activations only) and 1 (weights only)")


def _check_similarities(
    symmetry: Symmetry,
    space: str,
    activations: Mapping[str, Tensor] | None,
    weights: Mapping[str, Tensor] | None,
) -> None:
    missing = sorted({site.group for site in symmetry.sites} - set(activations or {}))
    if space != "weight" and (missing or not activations):
        raise InputError(f"activation similarity is missing for the groups {', '.join(missing)}")
    missing = sorted(set(symmetry.groups) - set(weights)) if weights else []
    if missing:
        raise InputError(f"weight similarity is missing for the groups {', '.join(missing)}")
    for name, table in [*(activations or {}).items(), *(weights or {}).items()]:
        if not torch.isfinite(table).all():
            raise InputError(f"similarity of the group '{name}' holds NaN or Inf; check the models and the data")
