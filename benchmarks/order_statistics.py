"""Order statistics of long rows: the bracket from a sample against a two-level histogram and against selection.

    python -m benchmarks.order_statistics [--models 3] [--parameters 16777216]

Prints CPU nanoseconds per entry, best of several runs. The histogram counts the upper 16 bits of all floats in a first
pass and the lower 16 bits of the cells that matter in a second; it is written for non-negative entries.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mergeline.balancing.order_statistics import order_statistics, sample_columns


def by_histogram(chunks: Callable[[], Iterator[Tensor]], ranks: Sequence[int]) -> list[list[float]]:
    upper: list[np.ndarray] = []
    for chunk in chunks():
        keys = chunk.numpy().view(np.uint32)
        upper = upper or [np.zeros(1 << 16, np.int64) for _ in keys]
        for counts, row in zip(upper, keys, strict=True):
            counts += np.bincount(row >> 16, minlength=1 << 16)
    sums = [np.cumsum(counts) for counts in upper]
    cells = [[int(np.searchsorted(row, rank, side="right")) for rank in ranks] for row in sums]
    lower = [[np.zeros(1 << 16, np.int64) for _ in ranks] for _ in upper]
    for chunk in chunks():
        for row, wanted, counts in zip(chunk.numpy().view(np.uint32), cells, lower, strict=True):
            head = (row >> 16).astype(np.uint16)
            for cell, count in zip(wanted, counts, strict=True):
                count += np.bincount(row[head == cell] & 0xFFFF, minlength=1 << 16)
    found = []
    for row, before, wanted, counts in zip(upper, sums, cells, lower, strict=True):
        rests = [rank - (before[cell] - row[cell]) for rank, cell in zip(ranks, wanted, strict=True)]
        low = [int(np.searchsorted(np.cumsum(c), rest, side="right")) for c, rest in zip(counts, rests, strict=True)]
        keys = [cell << 16 | bits for cell, bits in zip(wanted, low, strict=True)]
        found.append(np.array(keys, np.uint32).view(np.float32).tolist())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--parameters", type=int, default=1 << 24)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size = arguments.parameters
    rows = torch.randn(arguments.models, size, generator=torch.Generator().manual_seed(0)).abs_()

    def chunks() -> Iterator[Tensor]:
        return iter(rows.split(1 << 18, dim=1))

    print(f"{arguments.models} rows of {size:,}, CPU nanoseconds per entry")
    print(f"{'ranks':>14} {'sample':>8} {'bracket':>8} {'histogram':>10} {'selection':>10}")
    for shares in ([0.0001, 0.9999], [0.01, 0.99], [0.9]):
        ranks = [int(size * share) for share in shares]
        sample = sample_columns(chunks, size)
        ways: list[Callable[[], object]] = [
            lambda: sample_columns(chunks, size),
            lambda ranks=ranks, sample=sample: order_statistics(chunks, size, ranks, sample=sample),  # type: ignore[misc]
            lambda ranks=ranks: by_histogram(chunks, ranks),  # type: ignore[misc]
            lambda ranks=ranks: [[row.kthvalue(rank + 1).values for rank in ranks] for row in rows],  # type: ignore[misc]
        ]
        assert order_statistics(chunks, size, ranks, sample=sample).tolist() == by_histogram(chunks, ranks)
        times = [min(_nanoseconds(way, rows.numel()) for _ in range(arguments.runs)) for way in ways]
        print(f"{shares!s:>14} {times[0]:8.2f} {times[1]:8.2f} {times[2]:10.2f} {times[3]:10.2f}")


def _nanoseconds(way: Callable[[], object], entries: int) -> float:
    start = time.process_time()
    way()
    return (time.process_time() - start) / entries * 1e9


if __name__ == "__main__":
    main()
