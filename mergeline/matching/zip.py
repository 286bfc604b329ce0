"""Zip: merge the most alike units of all models, also of one and the same, until few enough are left (MuDSC, ZipIt)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mergeline.errors import InputError

Similarity = NDArray[np.float64]
Indices = NDArray[np.int64]


def kept_units(units: int, reduce: float) -> int:
    """How many of `units` remain when the share `reduce` is merged away; as the paper's program rounds."""
    return int(units * (1 - reduce) + 1e-4)


def merges_within(units: int, width: int, models: int, budget: float) -> int:
    """How many merges of two units of the same model each model may have."""
    return int((units - width) // models * budget + 1e-4)


@dataclass(frozen=True)
class Zipped:
    """`assign` int64 [units]: the merged unit of each unit; `width` merged units; the `similarity` of each merge."""

    assign: Indices
    width: int
    similarity: Similarity


def zip_units(similarity: Similarity, origin: Indices, width: int, decay: float, budgets: Indices) -> Zipped:
    """Merge pairs, the most alike first, until `width` units are left.

    similarity [N, N], symmetric up to rounding. origin [N]: the model of each unit. The second of a pair joins the
    first, which keeps its origin; the new unit is as alike to any other as the less alike of both, times `decay`.
    budgets [models]: merges of two units of one origin; when a model has none left, such merges are over. Both hold
    for merged units, too. The first of equal pairs wins. Raises InputError where the budgets end before
    `width` is reached.

    Every row keeps its maximum, or a bound of it, so a merge costs O(N) instead of O(N^2).
    """
    search = _Search(similarity, origin, budgets)
    merges = [search.merge(decay) for _ in range(len(similarity) - width)]
    joined = np.arange(len(similarity))
    for merge in reversed(merges):  # what a merged unit joined later is known already
        joined[merge.second] = joined[merge.first]
    roots = np.unique(joined)
    return Zipped(np.searchsorted(roots, joined), width, np.array([merge.similarity for merge in merges]))


class _Merge(NamedTuple):
    first: int
    second: int
    similarity: float


UNKNOWN = -1
"""In the place of a row's largest entry: it is to be looked for again, and not larger than what is noted."""


class _Search:
    """The similarity of the units that are left, each row with its largest entry and the first place of that.

    A row whose largest entry is gone is not searched before it seems the largest of all: few ever do.
    """

    def __init__(self, similarity: Similarity, origin: Indices, budgets: Indices) -> None:
        self.similarity = (similarity + similarity.T) / 2  # products of matrices may differ in the last bits
        np.fill_diagonal(self.similarity, -np.inf)
        self.origin = origin.copy()
        self.budgets = budgets.copy()
        self.place = self.similarity.argmax(axis=1)
        self.largest = self.similarity.max(axis=1)
        self.gone = 0

    def merge(self, decay: float) -> _Merge:
        """Merge the most alike pair."""
        first = self._row_of_largest()
        second = int(self.place[first])  # symmetric: the first largest entry lies above the diagonal
        value = float(self.largest[first])
        self._replace(first, second, decay)
        within = self.origin[first] == self.origin[second]
        self.origin[second] = -1
        if within:
            self._spend(int(self.origin[first]))
        return _Merge(first, second, value)

    def _row_of_largest(self) -> int:
        """The first row with the largest entry of all."""
        while True:
            row = int(self.largest.argmax())
            if self.largest[row] == -np.inf:
                raise InputError(
                    "zip: the budgets of merges within a model end before enough units are merged; raise the budget, "
                    "or lower reduce"
                )
            if self.place[row] != UNKNOWN:
                return row
            self._look_up(row)

    def _look_up(self, row: int) -> None:
        place = self.similarity[row].argmax()
        self.place[row], self.largest[row] = place, self.similarity[row, place]

    def _replace(self, first: int, second: int, decay: float) -> None:
        """Put the merged unit in the place of the first, and nothing in the place of the second."""
        similarity, largest, place = self.similarity, self.largest, self.place
        changed = np.minimum(similarity[first], similarity[second])
        if decay > 0:
            changed *= decay
        else:
            changed[changed > -np.inf] = 0
        changed[first] = changed[second] = -np.inf
        similarity[first] = similarity[:, first] = changed
        similarity[:, second] = -np.inf
        largest[second] = -np.inf
        self.gone += 1
        place[(place == first) | (place == second)] = UNKNOWN
        # only then has the merged unit become the most alike to another (what is gone, -inf, always counts here)
        if np.count_nonzero(changed >= largest) > self.gone:
            rows = ((changed >= largest) & (changed > -np.inf)).nonzero()[0]
            rows = rows[(changed[rows] > largest[rows]) | (first <= place[rows])]
            largest[rows], place[rows] = changed[rows], first
        self._look_up(first)

    def _spend(self, model: int) -> None:
        """One merge within a model less; after the last, its units may not merge with each other."""
        self.budgets[model] -= 1
        if self.budgets[model] <= 0:
            units = np.flatnonzero(self.origin == model)
            self.similarity[np.ix_(units, units)] = -np.inf
            self.place[units] = UNKNOWN
