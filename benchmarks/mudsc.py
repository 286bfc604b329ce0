"""MuDSC against plain dense programs of the same equations, measured in the same run.

    python -m benchmarks.mudsc [--width 64] [--pictures 200] [--units 1024] [--threads 1]

Two ResNet20s of different seeds are aligned and zipped in dual space; activation similarity is given to both sides.
The plain program multiplies a dense matrix onto every axis, correlates all units of both models for every group in
every sweep, and zips by looking through the whole matrix at every merge and copying the rest: in torch with a dense
unmerge matrix, as the paper's program does, and in bare numpy, which is about ten times as fast.

Prints seconds (fastest run), ratios, whether the assignments are the same, and how much each part adds to the peak of
resident memory (ru_maxrss of a process of its own).
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from benchmarks.timing import seconds
from mergeline.alignment.search import Matcher
from mergeline.alignment.solve import FAILURES_ALLOWED, solve
from mergeline.checkpoints.readers import open_checkpoint
from mergeline.matching.match import Method, match_units
from mergeline.models.resnet import resnet
from mergeline.similarity.activation import activation_moments
from mergeline.similarity.weight import weight_axes
from mergeline.symmetry.derive import derive_symmetry
from mergeline.symmetry.layout import families_of
from mergeline.symmetry.symmetry import CONSUMER, Symmetry
from mergeline.symmetry.trace import trace

SWEEPS = 100
DECAY = 0.5


Match = Callable[[Tensor, int], tuple[Tensor, float]]
"""Similarity [n * units, n * units] of n models -> the merged unit of each unit, and the mean value of the matches."""


class PlainSearch:
    """The sweeps of the method as one would first write them down, for models whose axes carry one family each."""

    def __init__(
        self,
        states: Sequence[Mapping[str, Tensor]],
        symmetry: Symmetry,
        activations: Mapping[str, Tensor],
        match: Match,
    ) -> None:
        self.states, self.symmetry, self.activations, self.match = states, symmetry, activations, match
        self.models = len(states)
        self.assign: dict[str, Tensor] = {}  # [n * units]: the merged unit of each unit
        self.maps: dict[str, tuple[list[Tensor], list[Tensor]]] = {}  # merge and unmerge, [units, merged] per model
        self.values: dict[str, float] = {}

    def run(self, balance: float = 0.5) -> dict[str, Tensor]:
        """The assignment of every group in dual space."""
        for name in self.symmetry.groups:
            self._replace(name, self.activations[name])
        best, highest, failures = self._state(), -float("inf"), 0
        names, generator = list(self.symmetry.groups), torch.Generator().manual_seed(0)
        for _ in range(SWEEPS):
            self.assign, self.maps, self.values = (dict(part) for part in best)
            for place in torch.randperm(len(names), generator=generator).tolist():
                name = names[place]
                self._replace(name, balance * self._weights(name) + (1 - balance) * self.activations[name])
            objective = sum(self.values.values()) / len(self.values)
            if objective > highest:
                best, highest = self._state(), objective
            else:
                failures += 1
                if failures == FAILURES_ALLOWED:
                    break
        return best[0]

    def _state(self) -> tuple[dict, dict, dict]:
        return dict(self.assign), dict(self.maps), dict(self.values)

    def _weights(self, group: str) -> Tensor:
        """Correlation of the weight rows of all units of all models, [n * units, n * units]."""
        rows = torch.cat([self._rows(group, model) for model in range(self.models)])
        return torch.corrcoef(rows)

    def _rows(self, group: str, model: int) -> Tensor:
        """All weights of each unit, the other axes brought onto the merged units by dense matrices."""
        blocks = []
        for axis in weight_axes(self.symmetry, group):
            tensor, layout = self.states[model][axis.param], self.symmetry.parameters[axis.param]
            for dim, (other, role) in enumerate(zip(layout.dims, layout.roles, strict=True)):
                for family in families_of(other) if dim != axis.dim else ():
                    matrix = self.maps[family][int(role == CONSUMER)][model]
                    tensor = (tensor.movedim(dim, -1) @ matrix).movedim(-1, dim)
            blocks.append(tensor.movedim(axis.dim, 0).reshape(tensor.shape[axis.dim], -1))
        return torch.cat(blocks, dim=1)

    def _replace(self, group: str, similarity: Tensor) -> None:
        """Match a group and build its dense matrices."""
        assign, self.values[group] = self.match(similarity, self.models)
        onehot = torch.nn.functional.one_hot(assign).float()
        merge = self.models * onehot / onehot.sum(dim=0)
        self.assign[group] = assign
        self.maps[group] = (list(merge.chunk(self.models)), list(onehot.chunk(self.models)))


def plain_permute(similarity: Tensor, models: int) -> tuple[Tensor, float]:
    """The assignment problem on each block of model 0 and another."""
    units, orders, values = len(similarity) // models, [], []
    for model in range(models):
        block = similarity[:units, model * units : (model + 1) * units].double()
        order = torch.from_numpy(linear_sum_assignment(block, maximize=True)[1]) if model else torch.arange(units)
        orders.append(order.argsort())
        values.append(float(block[torch.arange(units), order].mean()))
    return torch.cat(orders), sum(values[1:]) / (models - 1)


def torch_zip(similarity: Tensor, models: int) -> tuple[Tensor, float]:
    """Merge the most alike pair of the whole matrix until one model's width is left; `unmerge` is [units, merged]."""
    total = len(similarity)
    merges = total - total // models
    budgets = [merges // models] * models
    origin = torch.arange(models).repeat_interleave(total // models)
    left, unmerge, values = similarity.clone().fill_diagonal_(-float("inf")), torch.eye(total), []
    for _ in range(merges):
        low, high = sorted(divmod(int(left.flatten().argmax()), len(left)))
        values.append(float(left[low, high]))
        unmerge[:, low] += unmerge[:, high]
        unmerge = without(unmerge, high)
        left[low] = left[:, low] = DECAY * left[low].minimum(left[high])
        left[low, low] = -float("inf")
        model, other = int(origin[low]), int(origin[high])
        left = without(without(left, high).T, high).T.contiguous()
        origin = without(origin[None], high)[0]
        if model == other:
            budgets[model] -= 1
            if budgets[model] <= 0:
                own = origin == model
                left[own[:, None] & own] = -float("inf")
    return unmerge.argmax(dim=1), sum(values) / len(values)


def without(matrix: Tensor, column: int) -> Tensor:
    return torch.cat([matrix[:, :column], matrix[:, column + 1 :]], dim=1)


def numpy_zip(similarity: Tensor, models: int) -> tuple[Tensor, float]:
    """The same in numpy, with a list of the units in each merged unit."""
    total = len(similarity)
    merges = total - total // models
    budgets = [merges // models] * models
    origin = np.repeat(np.arange(models), total // models)
    members = [[unit] for unit in range(total)]
    left, values = similarity.numpy().copy(), []
    np.fill_diagonal(left, -np.inf)
    for _ in range(merges):
        low, high = sorted(divmod(int(left.argmax()), len(left)))
        values.append(left[low, high])
        left[low] = left[:, low] = DECAY * np.minimum(left[low], left[high])
        left[low, low] = -np.inf
        model, other = origin[low], origin[high]
        left = np.delete(np.delete(left, high, axis=0), high, axis=1)
        origin = np.delete(origin, high)
        members[low] += members.pop(high)
        if model == other:
            budgets[model] -= 1
            if budgets[model] <= 0:
                left[np.ix_(origin == model, origin == model)] = -np.inf
    assign = np.empty(total, dtype=np.int64)
    for place, units in enumerate(members):
        assign[units] = place
    return torch.from_numpy(assign), float(np.mean(values))


def make_model(width: int, seed: int) -> nn.Module:
    """A ResNet20 whose normalisation is not the identity."""
    torch.manual_seed(seed)
    module = resnet(blocks=(3, 3, 3), width=width, outputs=384).eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.2)
    return module


def peak_memory(function: Callable[[], object]) -> float:
    """MiB by which the resident memory (ru_maxrss) of a forked process grows while the function runs."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def measure() -> None:
        torch.set_num_threads(1)  # the threads of the parent do not exist here
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        function()
        sender.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)

    process = multiprocessing.get_context("fork").Process(target=measure)
    process.start()
    grown = receiver.recv()
    process.join()
    return grown


def print_row(name: str, times: tuple[float, float], memory: tuple[float, float], note: str) -> None:
    """One line of the table; the plain program comes first in each pair."""
    ratio = times[0] / times[1]
    print(f"{name:16} {times[0]:8.2f} s {times[1]:8.2f} s {ratio:7.2f}x", end="")
    print(f" {memory[0]:8.0f} MiB {memory[1]:6.0f} MiB   {note}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--units", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    modules = [make_model(arguments.width, seed) for seed in (0, 1)]
    states = [module.state_dict() for module in modules]
    images = torch.randn(arguments.pictures, 1, 28, 28)
    symmetry = derive_symmetry(modules[0], images[:2])
    moments = activation_moments(modules, symmetry, images[:100].split(50))
    activations = {name: entry.correlation() for name, entry in moments.items()}
    readers = [open_checkpoint(state) for state in states]

    print(f"ResNet20, width {arguments.width}, {arguments.threads} thread(s)")
    print(f"{'':16} {'plain':>10} {'mergeline':>10} {'ratio':>8} {'plain':>12} {'mergeline':>10}")
    cases: list[tuple[str, Method, Match]] = [
        ("dual align", "permute", plain_permute),
        ("dual zip, torch", "zip", torch_zip),
        ("dual zip, numpy", "zip", numpy_zip),
    ]
    for name, method, match in cases:
        plain = PlainSearch(states, symmetry, activations, match).run
        ours = partial(
            solve, readers, symmetry, space="dual", matcher=Matcher(method), activations=activations, sweeps=SWEEPS
        )
        memory = peak_memory(plain), peak_memory(ours)
        expected, found = plain(), ours()
        assign = found.assign
        same = all(torch.equal(expected[group], assign[group]) for group in symmetry.groups)
        note = f"{len(found.history)} sweeps, assignments {'identical' if same else 'DIFFERENT'}"
        print_row(name, (seconds(plain, arguments.runs), seconds(ours, arguments.runs)), memory, note)

    batches = images.split(100)

    def forward() -> None:
        with torch.no_grad():
            for module in modules:
                for batch in batches:
                    module(batch)

    observe = partial(activation_moments, modules, symmetry, batches)
    note = f"{arguments.pictures} pictures; plain: a forward pass of each model"
    memory = peak_memory(forward), peak_memory(observe)
    times = seconds(forward, arguments.runs), seconds(observe, arguments.runs)
    print_row("activation pass", times, memory, note)
    traced = seconds(lambda: trace(modules[0], (images[:100],)), arguments.runs)
    print(f"  of that, tracing takes {traced:.2f} s once; without it {times[0] / (times[1] - traced):.2f}x")

    generator = torch.Generator().manual_seed(0)
    similarity = torch.corrcoef(torch.randn(2 * arguments.units, 256, generator=generator))
    start = time.process_time()
    match_units(similarity, method="zip")
    print(f"zip of 2 x {arguments.units} units: {time.process_time() - start:.2f} CPU-seconds")


if __name__ == "__main__":
    main()
