"""How alike the units of two families are, before and after matching: small pictures of large tables, as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from mergeline.alignment.alignment import Alignment
from mergeline.checkpoints.readers import Reader
from mergeline.similarity.weight import WeightRows

SIDE = 64
"""Cells of a map at most, in either direction."""
SHOWN = 4
"""Groups that are shown, evenly from the one that matched worst to the one that matched best."""


class SimilarityMap(BaseModel):
    """Similarity of a group's units of the reference (rows) with those of the second family (columns).

    A cell holds the largest similarity of the units that it stands for, rounded: a mean would hide single matches.
    matched: the mean matched similarity of the group.
    """

    model_config = ConfigDict(frozen=True)

    group: str
    units: int
    matched: float
    before: list[list[float]]
    after: list[list[float]]


def similarity_maps(
    readers: Sequence[Reader],
    alignment: Alignment,
    *,
    space: str,
    balance: float,
    weights: Mapping[str, Tensor],
    activations: Mapping[str, Tensor],
    count: int = SHOWN,
) -> list[SimilarityMap]:
    """The maps of a few groups, in the similarity that decided: balance * weight + (1 - balance) * activation.

    readers: one model per family. weights, activations: {group: [n * units, n * units]} before matching. Afterwards
    the units of each family are listed by the merged unit that they go to, and weight similarity is computed anew:
    it depends on how the neighbouring groups are matched.
    """
    share = {"weight": 1.0, "activation": 0.0}.get(space, balance)
    rows, fold = WeightRows(readers, alignment.symmetry), alignment.fold if alignment.zips else None
    maps = []
    for name in shown_groups(alignment.values, count):
        units = alignment.symmetry.groups[name].size
        own = share if name in activations else 1.0  # tables of positions never show in activations
        table = _balanced(own, weights[name], activations.get(name))
        moved = (
            table if own == 0 else _balanced(own, rows.full(name, alignment.permutations, fold), activations.get(name))
        )
        places = alignment.assign[name]
        first, second = (places[start : start + units].argsort(stable=True) for start in (0, units))
        before, after = (part[:units, units : 2 * units] for part in (table, moved))
        maps.append(
            SimilarityMap(
                group=name,
                units=units,
                matched=alignment.values[name],
                before=_small(before),
                after=_small(after[first][:, second]),
            )
        )
    return maps


def _balanced(share: float, weight: Tensor, activation: Tensor | None) -> Tensor:
    return weight if activation is None or share == 1 else share * weight + (1 - share) * activation


def shown_groups(matched: Mapping[str, float], count: int) -> list[str]:
    """At most `count` groups, evenly from the worst matched to the best."""
    names = sorted(matched, key=lambda name: (matched[name], name))
    if len(names) <= count:
        return names
    return [names[round(place * (len(names) - 1) / (count - 1))] for place in range(count)]


def _small(table: Tensor) -> list[list[float]]:
    """[u, u] -> at most [SIDE, SIDE]."""
    side = min(SIDE, len(table))
    cells = adaptive_max_pool2d(table[None, None], side)[0, 0]
    return [[round(value, 3) + 0.0 for value in row] for row in cells.tolist()]
