"""Measure the choices of MuDSC on pairs of ResNet20s trained on disjoint halves of the classes; prints Markdown tables.

    python -m flows.train_zoo --first-seed 100 --zoo FOLDER          # another pair; the first one is shipped
    python -m benchmarks.mudsc_choices data/zoo FOLDER... [--draws 3] [--crossed]

Every pair is merged once per calibration draw (disjoint parts of the calibration split): reset, align, average, reset,
then joint accuracy over ten classes and mean accuracy of the two tasks on the test pictures, in percent. Cells are pair
by draw; comparisons are paired over the cells, with the standard error of the mean difference, and also over the means
of the pairs, because draws of one pair are not independent.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from math import sqrt
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mergeline.alignment.alignment import Alignment, identity_alignment
from mergeline.alignment.merge import merge_aligned
from mergeline.alignment.search import Matcher
from mergeline.alignment.solve import Space, solve
from mergeline.calibration.normalization import reset_normalization
from mergeline.checkpoints.readers import open_checkpoint
from mergeline.evaluation.datasets import LabelledExamples, load_images
from mergeline.evaluation.metrics import accuracy, ensemble_probabilities, predict_logits
from mergeline.evaluation.prototypes import load_prototypes, prototype_logits
from mergeline.matching.match import Method
from mergeline.models.resnet import resnet
from mergeline.similarity.activation import activation_similarity
from mergeline.symmetry.derive import derive_symmetry
from mergeline.symmetry.symmetry import Symmetry

DATASET = Path("data/datasets/fashion_mnist")
NAMES = ("mudsc-02478", "mudsc-13569")
TASKS = ((0, 2, 4, 7, 8), (1, 3, 5, 6, 9))
BATCH = 100
BALANCES = tuple(tenth / 10 for tenth in range(1, 10))
METHODS: Mapping[str, Method] = {"align": "permute", "zip": "zip"}

Scores = tuple[float, float]
"""Joint accuracy and mean accuracy of the tasks, in percent."""


@cache
def test_pictures() -> tuple[LabelledExamples, Tensor]:
    """The test pictures and the label prototypes."""
    pictures = load_images(DATASET, "test", where={"domain": "clean"})
    return pictures, load_prototypes(DATASET / "prototypes.safetensors").rows


def draws(count: int) -> list[Tensor]:
    """Disjoint random parts of the calibration pictures."""
    images = load_images(DATASET, "calibration", where={"domain": "clean"}).inputs
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return [images[part] for part in order.chunk(count)]


def load(states: Mapping[str, Tensor]) -> nn.Module:
    module = resnet(blocks=(3, 3, 3), width=16, outputs=384)
    module.load_state_dict(states)
    return module.eval()


def scores(modules: Sequence[nn.Module], tasks: Sequence[tuple[int, ...]] = TASKS) -> Scores:
    """How good a model, or the ensemble of several, is at telling all classes apart and those of each task."""
    pictures, prototypes = test_pictures()
    logits = [prototype_logits(predict_logits(module, pictures.inputs), prototypes) for module in modules]
    joint = accuracy(ensemble_probabilities(logits), pictures.labels).value
    each = [accuracy(ensemble_probabilities(logits, task), pictures.labels, task).value for task in tasks]
    return 100 * joint, 100 * mean(each)


class Cell:
    """One pair of models on one calibration draw."""

    def __init__(self, files: Sequence[Path], images: Tensor, symmetry: Symmetry) -> None:
        self.batches = images.split(BATCH)
        self.symmetry = symmetry
        trained = [load(load_file(file)) for file in files]
        self.modules = [reset_normalization(module, self.batches) for module in trained]
        self.states = [module.state_dict() for module in self.modules]
        self.activations = {
            consumers: activation_similarity(self.modules, symmetry, self.batches, consumers=consumers)
            for consumers in ("last", "all")
        }

    def aligned(
        self, space: Space, method: str, *, balance: float = 0.5, consumers: str = "last", swap: bool = False
    ) -> Scores:
        """Align, average, reset, measure.

        swap: weight similarity of zip reads and writes neighbours the other way round, as with `parity="authors"`
        (which for these networks does nothing else but make merged weights smaller by 5e-6).
        """
        alignment = solve(
            [open_checkpoint(state) for state in self.states],
            self.symmetry,
            space=space,
            matcher=Matcher(METHODS[method]),
            balance=balance,
            activations=self.activations[consumers],
            parity="authors" if swap else None,
        )
        return self.merged(alignment)

    def merged(self, alignment: Alignment) -> Scores:
        """The average of the aligned models, its normalisation measured anew."""
        return scores([reset_normalization(load(merge_aligned(self.states, alignment)), self.batches)])

    def rows(self) -> dict[str, Scores]:
        """Everything that is measured, by name."""
        found = {f"model {name[-5:]}": scores([module]) for name, module in zip(NAMES, self.modules, strict=True)}
        found["ensemble"] = scores(self.modules)
        found["average"] = self.merged(identity_alignment(self.symmetry, len(self.states)))
        for method in METHODS:
            for space in ("weight", "activation", "dual"):
                found[f"{space} {method}"] = self.aligned(space, method)
            for balance in BALANCES:
                found[f"dual {method} at {balance}"] = self.aligned("dual", method, balance=balance)
            for space in ("activation", "dual"):
                found[f"{space} {method}, all"] = self.aligned(space, method, consumers="all")
        for space in ("weight", "dual"):
            found[f"{space} zip, swapped"] = self.aligned(space, "zip", swap=True)
        return found


class Rows(Protocol):
    """One pair of models on one calibration draw, and everything that is measured of it, by name."""

    def rows(self) -> dict[str, Scores]: ...


MakeCell = Callable[[Sequence[Path], Tensor, Symmetry], Rows]


def measure(cell: MakeCell, files: Sequence[Path], draw: int, count: int) -> dict[str, Scores]:
    """One cell, in a process of its own."""
    torch.set_num_threads(1)
    images = draws(count)[draw]
    symmetry = derive_symmetry(resnet(blocks=(3, 3, 3), width=16, outputs=384).eval(), images[:2])
    found = cell(files, images, symmetry).rows()
    print(json.dumps({"files": [str(file) for file in files], "draw": draw, **found}), file=sys.stderr, flush=True)
    return found


Cells = Sequence[Sequence[Mapping[str, Scores]]]
"""Pairs, then draws of each."""


def spread(values: Sequence[float]) -> str:
    """Mean and standard error."""
    return f"{mean(values):.1f} ± {stdev(values) / sqrt(len(values)):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def flat(pairs: Sequence[Sequence[float]]) -> list[float]:
    return [value for pair in pairs for value in pair]


def difference(values: Sequence[float]) -> str:
    text = spread(values)
    return text if text.startswith("-") else f"+{text}"


def print_rows(cells: Cells, names: Sequence[str]) -> None:
    """Joint accuracy of each pair, and both measures over all cells."""
    print(f"| row | {' | '.join(f'pair {number}' for number in range(len(cells)))} | joint | tasks |")
    print(f"| --- |{' --: |' * (len(cells) + 2)}")
    for name in names:
        pairs = [mean(cell[name][0] for cell in pair) for pair in cells]
        columns = [spread(flat([[cell[name][place] for cell in pair] for pair in cells])) for place in (0, 1)]
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in pairs)} | {columns[0]} | {columns[1]} |")
    print()


def print_differences(cells: Cells, comparisons: Sequence[tuple[str, str]]) -> None:
    """First minus second, paired."""
    print("| difference | joint, per pair | joint, cells | joint, pairs | tasks, cells |")
    print("| --- | --- | --: | --: | --: |")
    for first, second in comparisons:
        joint, tasks = (
            [[cell[first][place] - cell[second][place] for cell in pair] for pair in cells] for place in (0, 1)
        )
        pairs = [mean(pair) for pair in joint]
        columns = [difference(flat(joint)), difference(pairs), difference(flat(tasks))]
        print(f"| {first} − {second} | {' '.join(f'{value:+.1f}' for value in pairs)} | {' | '.join(columns)} |")
    print()


def pair_parser(about: str | None) -> argparse.ArgumentParser:
    """The options of a benchmark on pairs of models."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoos", nargs="+", type=Path, help="folders, each with a pair of models")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--crossed", action="store_true", help="pair models of different folders, too")
    return parser


def on_pairs(
    cell: MakeCell,
    arguments: argparse.Namespace,
    names: Sequence[str],
) -> list[list[dict[str, Scores]]]:
    """What is measured of every pair on every draw of calibration pictures, each in a process of its own."""
    pairs = [
        [first / f"{names[0]}.safetensors", second / f"{names[1]}.safetensors"]
        for first in arguments.zoos
        for second in (arguments.zoos if arguments.crossed else [first])
    ]
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        futures = [
            [pool.submit(measure, cell, pair, draw, arguments.draws) for draw in range(arguments.draws)]
            for pair in pairs
        ]
        return [[future.result() for future in pair] for pair in futures]


def main() -> None:
    arguments = pair_parser(__doc__).parse_args()
    cells = on_pairs(Cell, arguments, NAMES)
    alone = [f"model {name[-5:]}" for name in NAMES]
    modes = [f"{space} {method}" for method in METHODS for space in ("weight", "activation", "dual")]
    print_rows(cells, [*alone, "ensemble", "average", *modes])
    print_differences(cells, [("dual align", "activation align"), ("dual align", "weight align")])
    print_differences(cells, [("dual zip", "activation zip"), ("dual zip", "dual align")])
    print("Balance:\n")
    print_rows(cells, [f"dual {method} at {balance}" for method in METHODS for balance in BALANCES])
    print("Where a stream is measured:\n")
    spaces = [f"{space} {method}" for method in METHODS for space in ("activation", "dual")]
    print_differences(cells, [(f"{name}, all", name) for name in spaces])
    print("Neighbours in the weight similarity of zip:\n")
    print_differences(cells, [(f"{space} zip, swapped", f"{space} zip") for space in ("weight", "dual")])


if __name__ == "__main__":
    main()
