"""Trials of a search in a SQLite file: a search that is killed goes on after the last one that was finished.

Optuna's samplers draw from random numbers whose state is in no file. So there is a new sampler for every trial, seeded
with the number of the trial, that knows nothing but the trials in the file, and there are only finished ones in it.
What is tried next therefore follows from the file alone, whoever wrote it and however often that was interrupted.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeline.errors import InputError
from mergeline.search.space import Choice, Point, Space

if TYPE_CHECKING:
    import optuna

LARGEST_GRID = 100_000


@dataclass(frozen=True)
class Trial:
    """A point that was tried, and what it came to. facts: plain data that was recorded with it."""

    number: int
    point: Point
    value: float
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Proposal:
    """The point to try next; `state` is what the sampler wants to be remembered with it."""

    number: int
    point: Point
    state: Any


class Study:
    """The trials of one search. Of several processes only one may work on it at a time (the caller's lock).

    file: the SQLite file, made where there is none; it may hold many studies. name: of this one: it must change with
    anything that changes a value. first: the point to begin with (not of a grid).
    """

    def __init__(self, file: Path, name: str, space: Space, *, method: str, seed: int, first: Point) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)  # a line per migration
        file.parent.mkdir(parents=True, exist_ok=True)
        self.name, self._space, self._method, self._seed, self._first = name, space, method, seed, first
        if method == "grid":
            check_grid(space)
        self._study = optuna.create_study(
            storage=f"sqlite:///{file}", study_name=name, direction="maximize", load_if_exists=True
        )

    @property
    def trials(self) -> list[Trial]:
        """All that were finished, in order."""
        return [
            Trial(trial.number, self._point(trial.params), float(trial.value or 0.0), trial.user_attrs)
            for trial in self._study.get_trials(deepcopy=False)
        ]

    def propose(self) -> Proposal:
        """What to try next; the same until it is added."""
        import optuna

        finished = self._study.get_trials(deepcopy=False)
        number = len(finished)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = self._sampler(number)
        scratch = optuna.create_study(direction="maximize", sampler=sampler)  # in memory: asking leaves no trace
        scratch.add_trials(finished)
        if number == 0 and self._method != "grid":
            scratch.enqueue_trial(self._parameters(self._first))
        asked = scratch.ask(self._distributions())
        state = scratch.get_trials(deepcopy=False)[number].system_attrs
        return Proposal(number, self._point(asked.params), state)

    def add(self, proposal: Proposal, value: float, facts: Mapping[str, Any]) -> Trial:
        """Record what a proposal came to: in one transaction, so a trial is in the file whole or not at all."""
        import optuna

        self._study.add_trial(
            optuna.trial.create_trial(
                params=self._parameters(proposal.point),
                distributions=self._distributions(),
                value=value,
                user_attrs=dict(facts),
                system_attrs=proposal.state,
            )
        )
        return Trial(proposal.number, proposal.point, value, facts)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        from optuna import samplers

        if self._method == "grid":  # its order comes from the seed, its place in it from the number of the trial
            grid = {_parameter(name, kind): _grid(kind) for name, kind in self._space.items()}
            return samplers.GridSampler(grid, seed=self._seed)
        seed = int.from_bytes(hashlib.sha256(f"{self._seed}/{number}".encode()).digest()[:4], "big")
        if self._method == "tpe":
            return samplers.TPESampler(seed=seed)
        steps = any(isinstance(kind, Choice) for kind in self._space.values())
        return samplers.CmaEsSampler(seed=seed, with_margin=steps)  # the margin keeps it from settling on one value

    def _distributions(self) -> dict[str, Any]:
        from optuna.distributions import FloatDistribution, IntDistribution

        return {
            _parameter(name, kind): IntDistribution(0, len(kind.values) - 1)
            if isinstance(kind, Choice)
            else FloatDistribution(kind.low, kind.high)
            for name, kind in self._space.items()
        }

    def _parameters(self, point: Point) -> dict[str, Any]:
        return {
            _parameter(name, kind): kind.values.index(point[name]) if isinstance(kind, Choice) else point[name]
            for name, kind in self._space.items()
        }

    def _point(self, parameters: Mapping[str, Any]) -> Point:
        found = {}
        for name, kind in self._space.items():
            value = parameters[_parameter(name, kind)]
            found[name] = kind.values[int(value)] if isinstance(kind, Choice) else float(value)
        return found


def best_of(trials: list[Trial]) -> Trial:
    """The trial of the highest value, the first of equals."""
    return max(trials, key=lambda trial: (trial.value, -trial.number))


def check_grid(space: Space) -> int:
    """The number of points of a grid; InputError where it is beyond all patience."""
    size = prod(len(kind.grid()) for kind in space.values())
    if size > LARGEST_GRID:
        raise InputError(
            f"search: the grid has {size} points, more than {LARGEST_GRID}; raise the steps, or write method: cma"
        )
    return size


def _grid(kind: Any) -> list[Any]:
    """The points of one coefficient as Optuna is told of them."""
    return list(range(len(kind.values))) if isinstance(kind, Choice) else kind.grid()


def _parameter(name: str, kind: Any) -> str:
    """What Optuna calls a coefficient: choices are known to it by their place, since CMA-ES needs an order."""
    return f"{name} (index)" if isinstance(kind, Choice) else name
