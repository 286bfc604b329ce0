"""How benchmarks measure."""

import time
from collections.abc import Callable


def seconds(function: Callable[[], object], runs: int) -> float:
    """The fastest of several runs: the others measure the neighbours on the machine."""
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best
