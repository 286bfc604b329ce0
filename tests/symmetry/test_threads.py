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
