"""Weight similarity of models that are being zipped, kept up to date while the units around a group move."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergeline.alignment.fold import Fold, Zip, add_up
from mergeline.similarity.correlation import add_products, correlation
from mergeline.similarity.weight import WeightRows
from mergeline.symmetry.layout import Fixed, Units, families_of
from mergeline.symmetry.permute import Permutations
from mergeline.symmetry.symmetry import Axis
from mergeline.symmetry.units import units_first

RESOLUTION = 1e-6
"""Share of a unit's mean square below which its variance cannot be told from rounding: the unit then counts as dead."""

Standing = tuple[object, ...]
"""Where the units of a family are: how they are zipped, and their order in each model; replaced when they change."""


@dataclass
class Totals:
    """Of the weight rows of all units: their products, their sums, the number of columns, and what these stood for."""

    products: Tensor
    sums: Tensor
    columns: int
    around: Mapping[str, Standing]

    def add(self, columns: Tensor, sign: int) -> None:
        """Add columns [n * units, any number] to the rows, or take them off."""
        add_products(self.products, columns, sign)
        self.sums.add_(columns.sum(dim=1, dtype=torch.float64), alpha=sign)

    def correlation(self) -> Tensor:
        """Pearson correlation of any two rows, float64 [n * units, n * units]."""
        mean = self.sums / self.columns
        covariance = (self.products.double() / self.columns).addr_(mean, mean, alpha=-1)
        dead = covariance.diagonal() < RESOLUTION * mean.square()
        covariance[dead] = covariance[:, dead] = 0
        deviation = covariance.diagonal().sqrt()
        return correlation(covariance, deviation, deviation)


@dataclass(frozen=True)
class Change:
    """Merged units of one family that differ. units: those in them, per model. before, after: the merged unit of each,
    counted from 0, per model. sizes: how many units, of all models, there are in each merged unit before and after."""

    units: tuple[Tensor, ...]
    before: tuple[Tensor, ...]
    after: tuple[Tensor, ...]
    sizes: tuple[Tensor, Tensor]

    @staticmethod
    def between(before: Zip, after: Zip) -> Change:
        """What is in other company than before; merged units of the same units count as the same in any place."""
        old, new = before.assign.flatten(), after.assign.flatten()
        old_sizes, new_sizes = torch.bincount(old), torch.bincount(new)
        pairs = old * after.width + new
        together = torch.bincount(pairs)[pairs]
        differs = ((together != old_sizes[old]) | (together != new_sizes[new])).reshape(before.assign.shape)
        units = tuple(row.nonzero().flatten() for row in differs)
        parts, sizes = [], []
        for zipped in (before, after):
            _, places = zipped.assign[differs].unique(return_inverse=True)
            sizes.append(torch.bincount(places))
            parts.append(places.split([len(row) for row in units]))
        return Change(units, parts[0], parts[1], (sizes[0], sizes[1]))


class ZippedRows:
    """`WeightRows.full` for a search that asks again and again.

    A merged unit of a neighbour that still consists of the same units gives the same column as before, and the order of
    columns does not matter. So only the columns of those that changed are taken off, and those of the new ones added.
    """

    def __init__(self, rows: WeightRows) -> None:
        self._rows, self._symmetry = rows, rows.symmetry
        self._totals: dict[str, Totals] = {}

    def similarity(self, group: str, permutations: Sequence[Permutations], fold: Fold) -> Tensor:
        """Correlation of the weights of all units of a group in all models, float64 [n * units, n * units]."""
        axes = self._rows.axes(group)
        families = {family: None for axis in axes for family in self._around(axis)}
        around: dict[str, Standing] = {
            family: (fold.zips.get(family), *(orders[family] for orders in permutations)) for family in families
        }
        total = self._totals.get(group)
        changes = _changes(total.around, around) if total else None
        if total is None or changes is None or not self._is_worth_it(axes, changes):
            total = self._anew(group, permutations, fold)
        else:
            for sign in (-1, 1):
                columns = list(self._columns(axes, changes, fold, sign))
                if columns:
                    total.add(torch.cat(columns, dim=1), sign)
        total.around = around
        self._totals[group] = total
        return total.correlation()

    def _anew(self, group: str, permutations: Sequence[Permutations], fold: Fold) -> Totals:
        rows = torch.cat([self._rows.rows(model, group, orders, fold) for model, orders in enumerate(permutations)])
        units = len(rows)
        total = Totals(rows.new_zeros(units, units), rows.new_zeros(units, dtype=torch.float64), rows.shape[1], {})
        total.add(rows, 1)
        return total

    def _is_worth_it(self, axes: Iterable[Axis], changes: Mapping[str, Change]) -> bool:
        """Whether less columns changed than there are; no, where a change is not that of a whole axis alone."""
        changed, columns = 0.0, 0.0
        for axis in axes:
            shape = self._rows.readers[0].shape(axis.param)
            rest = math.prod(shape) / shape[axis.dim]
            columns += rest
            for family in changes.keys() & self._around(axis):
                dim = self._dim_of(family, axis)
                if dim is None:
                    return False
                changed += rest / shape[dim] * sum(len(sizes) for sizes in changes[family].sizes)
        return changed < columns

    def _around(self, axis: Axis) -> list[str]:
        """The families that decide how the weights of a unit on this axis are ordered."""
        layout = self._symmetry.parameters[axis.param]
        linked = self._rows.own_axis(layout, axis) is None
        dims = [dim for dim in range(len(layout.dims)) if linked or dim != axis.dim]
        return [family for dim in dims for family in families_of(layout.dims[dim])]

    def _dim_of(self, family: str, axis: Axis) -> int | None:
        """The only other axis of the tensor on which units move, if it is one of this family alone."""
        layout = self._symmetry.parameters[axis.param]
        moving = [dim for dim, other in enumerate(layout.dims) if dim != axis.dim and not isinstance(other, Fixed)]
        simple = self._rows.own_axis(layout, axis) is not None and len(moving) == 1
        return moving[0] if simple and layout.dims[moving[0]] == Units(family) else None

    def _columns(self, axes: Iterable[Axis], changes: Mapping[str, Change], fold: Fold, sign: int) -> Iterator[Tensor]:
        """The columns [n * units, ...] of the merged units that are gone (-1) or new (1), axis by axis."""
        for axis in axes:
            layout = self._symmetry.parameters[axis.param]
            for family in changes.keys() & self._around(axis):
                dim, change = self._dim_of(family, axis), changes[family]
                assert dim is not None  # it would not be worth it
                places, sizes = (change.after, change.sizes[1]) if sign > 0 else (change.before, change.sizes[0])
                share = fold.share(sizes).reshape([-1 if j == dim else 1 for j in range(len(layout.dims))])
                rows = []
                for model, (units, index) in enumerate(zip(change.units, places, strict=True)):
                    tensor = self._rows.read(model, axis.param)
                    tensor = tensor.index_select(dim, units.to(tensor.device))
                    folded = add_up(tensor, dim, index.to(tensor.device), len(sizes))
                    if fold.is_shared(layout.roles[dim]):
                        folded *= share.to(tensor.device)
                    rows.append(units_first(folded, axis.span, self._symmetry.sizes))
                yield torch.cat(rows)


def _changes(before: Mapping[str, Standing], now: Mapping[str, Standing]) -> dict[str, Change] | None:
    """What changed in each family; None where one was zipped for the first time, or its units were reordered."""
    changes = {}
    for family, standing in now.items():
        zipped, *orders = standing
        earlier, *earlier_orders = before[family]
        if any(order is not old for order, old in zip(orders, earlier_orders, strict=True)):
            return None
        if zipped is earlier:
            continue
        if not (isinstance(zipped, Zip) and isinstance(earlier, Zip) and zipped.assign.ndim == 2):
            return None
        changes[family] = Change.between(earlier, zipped)
    return changes
