"""The k-th smallest entry of each row over any number of chunks: the bits of a full sort, in bounded memory.

A sample brackets each wanted rank; one pass counts the entries below the bracket and keeps the few inside it (Floyd and
Rivest 1975). Where those are too many to keep, their float bits are counted in a histogram, which narrows the bracket
for another pass, and where the sample misled, the other side of the bracket is searched. So the sample decides how many
passes are taken, never what comes out.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]

HELD_ENTRIES = 1 << 22  # rows of fewer entries in all are held instead of sampled: 16 MiB
SELECTED_COLUMNS = 1 << 14  # rows up to here are selected from at once; held ones that are longer take a bracket, too
SAMPLE_COLUMNS = 1 << 17  # of longer rows; a bracket then holds about 1 % of a row
KEPT_ENTRIES = 1 << 22  # candidates, over all brackets: 16 MiB
HISTOGRAM_BINS = 1 << 21  # over all brackets: 16 MiB
LEAST_KEPT = LEAST_BINS = 1 << 12  # per bracket, however many there are
SIGMAS = 4  # half the width of a bracket, in standard deviations of a rank in the sample


def order_statistics(
    chunks: Callable[[], Iterable[Tensor]], size: int, ranks: Sequence[int], *, sample: Tensor | None = None
) -> Tensor:
    """The entries that a full sort of each row would put at the 0-based `ranks`: [n, len(ranks)] float32.

    chunks: each call iterates over the n rows of `size` entries in order, as [n, c] float32; a chunk is read before the
    next one is taken. It is called once where the sample is good, and a few times more where it is not. sample: some
    columns of the rows, [n, m] float32; None draws them in a pass of its own. One of `size` columns stands for the rows
    themselves. Neither the sample, nor how the rows are cut, nor the number of threads changes a bit. -0 comes out as
    0, NaN counts as the largest. ValueError where the chunks do not add up to `size`.
    """
    if sample is None:
        sample = sample_columns(chunks, size)
    rows = sample.detach().cpu().numpy()
    if rows.shape[1] != size:
        found = _search(chunks, size, ranks, rows)
    elif size > SELECTED_COLUMNS:
        found = _search(lambda: [sample], size, ranks, rows[:, :: size // SELECTED_COLUMNS | 1])
    else:
        found = [np.partition(row, sorted(set(ranks)))[list(ranks)] + np.float32(0) for row in rows]
    return torch.from_numpy(np.stack(found)).to(sample.device)


def sample_columns(chunks: Callable[[], Iterable[Tensor]], size: int) -> Tensor:
    """Evenly spaced columns of the rows, [n, m]; all of them where they are few. Takes one pass.

    Every k-th column with k odd: a power of two would pick the same column of every weight matrix again and again.
    """
    parts, stride, seen = [], 1, 0
    for chunk in chunks():
        if not seen and len(chunk) * size > HELD_ENTRIES:
            stride = max(1, size // SAMPLE_COLUMNS) | 1
        parts.append(chunk[:, -seen % stride :: stride].clone())
        seen += chunk.shape[1]
    _check_size(seen, size)
    return torch.cat(parts, dim=1)


def _search(chunks: Callable[[], Iterable[Tensor]], size: int, ranks: Sequence[int], sample: Floats) -> list[Floats]:
    searches = [[_Search(rank) for rank in ranks] for _ in sample]
    count = len(sample) * len(ranks)
    kept, bins = max(LEAST_KEPT, KEPT_ENTRIES // count), max(LEAST_BINS, HISTOGRAM_BINS // count)
    for row, of_row in zip(np.sort(sample, axis=1), searches, strict=True):
        for search in of_row:
            search.bracket(row, size)
    while unfinished := [(index, search) for index, row in enumerate(searches) for search in row if not search.done]:
        for _, search in unfinished:
            search.start(kept, bins)
        seen = 0
        for chunk in chunks():
            entries = chunk.detach().cpu().numpy()
            seen += entries.shape[1]
            for index, search in unfinished:
                search.take(entries[index])
        _check_size(seen, size)
        for _, search in unfinished:
            search.finish()
    return [np.array([search.value for search in row], dtype=np.float32) for row in searches]


class _Search:
    """The search for one rank of one row: a bracket [low, high], narrowed pass by pass until one value is left.

    The value always lies in [floor, ceiling]; a bracket from the sample may miss it.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.value = np.float32(np.nan)
        self.done = False
        self.floor = self.low = np.float32(-np.inf)
        self.ceiling = self.high = np.float32(np.inf)

    def bracket(self, ordered: Floats, size: int) -> None:
        """Set [low, high] around the place of the rank in a sorted sample."""
        count = len(ordered)
        share = (self.rank + 0.5) / size
        margin = SIGMAS * (math.sqrt(count * share * (1 - share)) + 1)
        first, last = math.floor(share * count - margin), math.ceil(share * count + margin)
        if 0 <= first < count and not np.isnan(ordered[first]):
            self.low = ordered[first] + np.float32(0)
        if last < count and not np.isnan(ordered[last]):
            self.high = ordered[last] + np.float32(0)

    def start(self, kept: int, bins: int) -> None:
        """Begin a pass that keeps up to `kept` candidates, or counts them in up to `bins` bins of equal width."""
        self.below = self.at_low = self.at_high = self.between = 0
        self.candidates: list[Floats] = []
        self.kept, self.waiting = kept, 0
        self.histogram: NDArray[np.int64] | None = None
        keys = int(_keys(self.high)) - int(_keys(self.low)) + 1
        self.shift = max(0, (keys - 1).bit_length() - (bins.bit_length() - 1))
        self.bins = ((keys - 1) >> self.shift) + 1

    def take(self, entries: Floats) -> None:
        """Count the entries below the bracket and at its ends; keep those between. entries: a piece of the row [c]."""
        under = entries < self.low
        inside = entries <= self.high
        self.below += int(np.count_nonzero(under))
        inside ^= under
        found = entries[inside]
        if not len(found):
            return
        at_low = found == self.low
        between = found < self.high  # ties at the ends may be millions: they are only counted
        self.at_low += int(np.count_nonzero(at_low))
        if self.low != self.high:
            self.at_high += len(found) - int(np.count_nonzero(between))
            found = found[between & ~at_low]
            self.between += len(found)
            self.waiting += len(found)
            self.candidates.append(found)
            if self.waiting > self.kept:
                self._count()

    def finish(self) -> None:
        """End of a pass: the value is known, or the bracket is where it must be."""
        place = self.rank - self.below
        if place < 0:
            self.ceiling = np.nextafter(self.low, np.float32(-np.inf))
            self.low, self.high = self.floor, self.ceiling
        elif place < self.at_low:
            self._found(self.low)
        elif (place := place - self.at_low) < self.between:
            self._among(place)
        elif place - self.between < self.at_high:
            self._found(self.high)
        elif self.high == np.inf:
            self._found(np.float32(np.nan))
        else:
            self.floor = np.nextafter(self.high, np.float32(np.inf))
            self.low, self.high = self.floor, self.ceiling

    def _among(self, place: int) -> None:
        """The value is the candidate at this place."""
        if self.histogram is None:
            self._found(np.partition(np.concatenate(self.candidates), place)[place])
            return
        self._count()
        cell = int(np.searchsorted(np.cumsum(self.histogram), place, side="right"))
        first = int(_keys(self.low)) + (cell << self.shift)
        last = min(first + (1 << self.shift) - 1, int(_keys(self.high)))
        self.low, self.high = _floats(first), _floats(last)
        if first == last:
            self._found(self.low)

    def _count(self) -> None:
        """Empty the candidates into the histogram."""
        if self.histogram is None:
            self.histogram = np.zeros(self.bins, dtype=np.int64)
        if self.candidates:
            cells = _keys(np.concatenate(self.candidates))
            cells -= _keys(self.low)
            cells >>= self.shift
            self.histogram += np.bincount(cells, minlength=self.bins)
        self.candidates, self.waiting = [], 0

    def _found(self, value: np.float32) -> None:
        self.value, self.done = np.float32(value + np.float32(0)), True
        self.candidates, self.histogram = [], None


def _keys(values: Floats | np.float32) -> NDArray[np.int64]:
    """Integers in the order of the floats, consecutive for consecutive floats; -0 and 0 have one key."""
    bits = np.asarray(values + np.float32(0), dtype=np.float32).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _floats(key: int) -> np.float32:
    """The float of a key."""
    bits = key if key >= 0 else -key | 0x80000000
    return np.float32(np.array(bits, dtype=np.uint32).view(np.float32))


def _check_size(seen: int, size: int) -> None:
    if seen != size:
        raise ValueError(f"the chunks hold {seen} entries per row, not {size}")
