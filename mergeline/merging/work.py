"""A merge cut into parts that several processes compute and write, each by itself, to the bytes of one process.

    merged = merge(...)
    layout = prepare(path, merged.specs, metadata=merged.metadata)
    for part in split(merged, 8):               # anywhere, in any order
        write_part(layout, merge(..., statistics=statistics), part)
    manifest = publish(layout)

The statistics of the method (`method_statistics`) are computed once, beforehand. A part is plain data.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod
from typing import NamedTuple

from mergeline.checkpoints.output import Layout, is_written, write_range
from mergeline.checkpoints.streams import FlatPiece
from mergeline.merging.merged import MergedTensors


class Range(NamedTuple):
    """Entries [start, stop) of a tensor, counted in the order of its rows."""

    name: str
    start: int
    stop: int


def split(merged: MergedTensors, parts: int) -> list[list[Range]]:
    """The merge in at most `parts` parts of nearly equal numbers of entries: every entry in one, in the order of names.

    A tensor of a method of whole tensors stays in one part. The same merge gives the same parts everywhere.
    """
    if parts < 1:
        raise ValueError(f"a merge cannot be cut into {parts} parts")
    sizes = {name: prod(shape) for name, (shape, _) in merged.specs.items()}
    total = sum(sizes.values())
    found: list[list[Range]] = [[] for _ in range(parts)]
    before = 0  # entries in the tensors so far
    for name, size in sizes.items():
        cuts = [] if merged.is_whole(name) else [-(-total * part // parts) - before for part in range(1, parts)]
        edges = [0, *(cut for cut in cuts if 0 < cut < size), size]
        for start, stop in pairwise(edges):
            if start < stop:
                found[(before + start) * parts // total].append(Range(name, start, stop))
        before += size
    return [part for part in found if part]


def write_part(layout: Layout, merged: MergedTensors, part: Sequence[Range]) -> None:
    """Compute one part and write it into the prepared output, unless it is there already, from an earlier attempt."""
    if not is_written(layout, list(part)):
        write_range(layout, _pieces(merged, part))


def _pieces(merged: MergedTensors, part: Sequence[Range]) -> Iterator[FlatPiece]:
    for name, start, stop in part:
        yield from merged.pieces_of(name, start, stop)
