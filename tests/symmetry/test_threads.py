"""Modules are traced in several threads of one process: the stages of a flow run so."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from mergeline.symmetry.trace import trace


def block() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))


def test_traces_in_threads_do_not_disturb_each_other() -> None:
    with ThreadPoolExecutor(4) as threads:
        traces = list(threads.map(lambda _: trace(block(), (torch.zeros(2, 3, 8, 8),)), range(8)))
    assert len({len(list(one.program.graph.nodes)) for one in traces}) == 1


class Watching(nn.Module):
    """Notes which backends are on while it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.seen = nn.Conv2d(1, 2, 3), set[bool]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add(torch.backends.mkldnn.enabled)
        return self.conv(x)


def test_a_trace_leaves_the_kernels_of_other_threads_alone() -> None:
    """torch.export turns oneDNN off for the whole process; then convolutions beside it have other last digits."""
    module = Watching()
    assert torch.backends.mkldnn.enabled
    trace(module, (torch.zeros(2, 1, 8, 8),))
    assert module.seen == {True} and torch.backends.mkldnn.enabled
    from torch.export import _trace

    assert _trace._ignore_backend_decomps.__name__ == "_ignore_backend_decomps", "given back"
