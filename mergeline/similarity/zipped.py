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

RESOLUTION = 1e-12
"""Share of a unit's squared mean; less variance than this cannot be told from rounding, and the unit counts as dead."""

Standing = tuple[object, ...]
"""Where the units of a family are: how they are zipped, and their order in each model; replaced when they change."""


@dataclass
class Totals:
    """Of the weight rows of all units: their products, their sums, the number of columns, and what these stood for.

    shift: about the mean of each row; it is taken off every column, so that a large mean costs no precision.
    """

    shift: Tensor
    products: Tensor
    sums: Tensor
    columns: int
    around: Mapping[str, Standing]

    def add(self, columns: Tensor, sign: int) -> None:
        """Add columns [n * units, any number] to the rows, or take them off."""
        columns = columns - self.shift[:, None]
        add_products(self.products, columns, sign)
        self.sums.add_(columns.sum(dim=1).double(), alpha=sign)

    def correlation(self) -> Tensor:
        """Pearson correlation of any two rows, float64 [n * units, n * units]."""
        mean = self.sums / self.columns
        covariance = (self.products.double() / self.columns).addr_(mean, mean, alpha=-1)
        dead = covariance.diagonal() < RESOLUTION * (mean + self.shift).square()
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


@dataclass(frozen=True)
class Block:
    """The columns that one tensor gives to the rows of a group.

    around: the families that decide how they are ordered. dim: the only other axis of the tensor on which units move,
    where it is one of a single family; otherwise none. columns: how many, per unit of that axis if there is one.
    """

    axis: Axis
    around: tuple[str, ...]
    dim: int | None
    columns: int
    all_columns: int


class ZippedRows:
    """`WeightRows.full` for a search that asks again and again.

    A merged unit of a neighbour that still consists of the same units gives the same column as before, and the order of
    columns does not matter. So only the columns of those that changed are taken off, and those of the new ones added.
    All calls for a group must be of the same fold but for its zips; zipped families are in their own order, as a search
    leaves them.
    """

    def __init__(self, rows: WeightRows) -> None:
        self._rows, self._symmetry = rows, rows.symmetry
        self._blocks = {group: [self._block(axis) for axis in rows.axes(group)] for group in rows.symmetry.groups}
        self._totals: dict[str, Totals] = {}

    def similarity(self, group: str, permutations: Sequence[Permutations], fold: Fold) -> Tensor:
        """Correlation of the weights of all units of a group in all models, float64 [n * units, n * units]."""
        blocks = self._blocks[group]
        around: dict[str, Standing] = {
            family: (fold.zips.get(family), *(orders[family] for orders in permutations))
            for family in dict.fromkeys(family for block in blocks for family in block.around)
        }
        total = self._totals.get(group)
        changes = _changes(total.around, around) if total else None
        if total is None or changes is None or not _is_worth_it(blocks, changes):
            total = self._anew(group, permutations, fold)
        else:
            for sign in (-1, 1):
                columns = list(self._columns(blocks, changes, fold, sign))
                if columns:
                    total.add(torch.cat(columns, dim=1), sign)
        total.around = around
        self._totals[group] = total
        return total.correlation()

    def _block(self, axis: Axis) -> Block:
        layout, shape = self._symmetry.parameters[axis.param], self._rows.readers[0].shape(axis.param)
        linked = self._rows.own_axis(layout, axis) is None
        dims = [dim for dim in range(len(layout.dims)) if linked or dim != axis.dim]
        around = tuple(family for dim in dims for family in families_of(layout.dims[dim]))
        moving = [dim for dim in dims if not isinstance(layout.dims[dim], Fixed)]
        dim = moving[0] if not linked and len(moving) == 1 and isinstance(layout.dims[moving[0]], Units) else None
        columns = math.prod(shape) // shape[axis.dim]
        return Block(axis, around, dim, columns // shape[dim] if dim is not None else columns, columns)

    def _anew(self, group: str, permutations: Sequence[Permutations], fold: Fold) -> Totals:
        rows = torch.cat([self._rows.rows(model, group, orders, fold) for model, orders in enumerate(permutations)])
        units = len(rows)
        sums = rows.new_zeros(units, dtype=torch.float64)
        total = Totals(rows.mean(dim=1), rows.new_zeros(units, units), sums, rows.shape[1], {})
        total.add(rows, 1)
        return total

    def _columns(
        self, blocks: Iterable[Block], changes: Mapping[str, Change], fold: Fold, sign: int
    ) -> Iterator[Tensor]:
        """The columns [n * units, ...] of the merged units that are gone (-1) or new (1), block by block."""
        for block in blocks:
            if block.dim is None or block.around[0] not in changes:
                continue
            dim, change, layout = block.dim, changes[block.around[0]], self._symmetry.parameters[block.axis.param]
            places, sizes = (change.after, change.sizes[1]) if sign > 0 else (change.before, change.sizes[0])
            share = fold.share(sizes).reshape([-1 if j == dim else 1 for j in range(len(layout.dims))])
            rows = []
            for model, (units, index) in enumerate(zip(change.units, places, strict=True)):
                tensor = self._rows.read(model, block.axis.param)
                tensor = tensor.index_select(dim, units.to(tensor.device))
                folded = add_up(tensor, dim, index.to(tensor.device), len(sizes))
                if fold.is_shared(layout.roles[dim]):
                    folded *= share.to(tensor.device)
                rows.append(units_first(folded, block.axis.span, self._symmetry.sizes))
            yield torch.cat(rows)


def _is_worth_it(blocks: Iterable[Block], changes: Mapping[str, Change]) -> bool:
    """Whether fewer columns changed than there are; no, where a change is not that of one whole axis."""
    changed, columns = 0, 0
    for block in blocks:
        columns += block.all_columns
        for family in changes.keys() & set(block.around):
            if block.dim is None:
                return False
            changed += block.columns * sum(len(sizes) for sizes in changes[family].sizes)
    return changed < columns


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
