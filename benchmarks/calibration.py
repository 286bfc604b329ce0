"""What closed-form calibration gives on pairs of models in MuDSC's setting, and what its controls give.

    python -m benchmarks.calibration data/zoo FOLDER ...     # folders of `python -m flows.train_zoo --first-seed N`
    python -m benchmarks.calibration data/zoo --pair mudsc-12679 mudsc-03458

Every pair of two ResNet20s on disjoint classes is zipped in dual space and calibrated on disjoint random draws of the
calibration pictures. Controls: the same calibration of one of the two models, of a random alignment, of the plain
average, and on cropped pictures alone (another domain); a ridge from raw pixels to the same target. Joint accuracy and
the mean over the tasks, in percent; the error is over pairs by draws, which are not independent.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.mudsc_choices import (
    BATCH,
    DATASET,
    NAMES,
    Scores,
    load,
    on_pairs,
    pair_parser,
    print_rows,
    scores,
    test_pictures,
)
from mergeline.alignment.alignment import Alignment, identity_alignment
from mergeline.alignment.merge import merge_aligned
from mergeline.alignment.solve import align
from mergeline.calibration.calibrate import calibrate_and_record
from mergeline.calibration.heads import Heads
from mergeline.calibration.normalization import reset_normalization
from mergeline.evaluation.datasets import load_images
from mergeline.evaluation.metrics import accuracy, predict_logits
from mergeline.evaluation.prototypes import prototype_logits
from mergeline.symmetry.symmetry import Symmetry

FULL: dict[str, Any] = {"centre": True, "last_layer": "mean", "layers": True, "ridge": 1e-2, "columns": None}
STEPS: dict[str, dict[str, Any]] = {
    "centring": {"layers": False, "last_layer": None},
    "centring, last layer": {"layers": False},
    "full refit": {},
    "full refit, not centred": {"centre": False},
    "full refit, 4000 columns": {"columns": 4000},
    "full refit, heads": {"last_layer": "heads"},
}


Tasks = Sequence[tuple[int, ...]]


def classes_of(file: Path) -> tuple[int, ...]:
    """The classes of a model: the digits at the end of its name."""
    return tuple(map(int, file.stem.rpartition("-")[2]))


def score_outputs(outputs: Tensor, tasks: Tasks) -> Scores:
    """Accuracy of embeddings [n, d] of the test pictures."""
    pictures, prototypes = test_pictures()
    logits = prototype_logits(outputs, prototypes)
    each = [accuracy(logits, pictures.labels, task).value for task in tasks]
    return 100 * accuracy(logits, pictures.labels).value, 100 * mean(each)


def outputs_of(module: nn.Module) -> Tensor:
    return predict_logits(module, test_pictures()[0].inputs)


class Cell:
    """One pair of models on one draw of calibration pictures."""

    def __init__(self, files: Sequence[Path], images: Tensor, symmetry: Symmetry) -> None:
        self.images, self.batches, self.symmetry = images, images.split(BATCH), symmetry
        self.trained = [load(load_file(file)) for file in files]
        self.modules = [reset_normalization(module, self.batches) for module in self.trained]
        self.names, self.tasks = [file.stem for file in files], [classes_of(file) for file in files]
        self.heads = [test_pictures()[1][list(task)] for task in self.tasks]

    def merged(self, alignment: Alignment) -> nn.Module:
        states = [module.state_dict() for module in self.modules]
        return reset_normalization(load(merge_aligned(states, alignment)), self.batches)

    def calibrated(self, merged: nn.Module, alignment: Alignment, **options: Any) -> nn.Module:
        given = FULL | options
        return calibrate_and_record(merged, self.modules, alignment, self.batches, heads=self.heads, **given).module

    def scored(self, modules: Sequence[nn.Module]) -> Scores:
        return scores(modules, tasks=self.tasks)

    def ensemble(self) -> Tensor:
        """The mean of the models' outputs on the calibration pictures."""
        with torch.no_grad():
            return torch.stack([module(self.images) for module in self.modules]).mean(dim=0)

    def embedded(self, outputs: Tensor) -> Scores:
        return score_outputs(outputs, self.tasks)

    def rows(self) -> dict[str, Scores]:
        """Everything that is measured, by name; and the seconds that a full refit took."""
        models = [outputs_of(module) for module in self.modules]
        both = torch.stack(models).mean(dim=0)
        found = {f"model {name[-5:]}": self.embedded(own) for name, own in zip(self.names, models, strict=True)}
        found["ensemble of probabilities"] = self.scored(self.modules)
        found["ensemble of embeddings"] = self.embedded(both)
        found["ensemble of embeddings, centred"] = self.embedded(both - self.ensemble().mean(dim=0))
        found["ensemble read by heads"] = self.embedded(Heads(self.heads)(models, -1))
        zipped = align(self.modules, self.symmetry, method="zip", batches=self.batches)
        merged = self.merged(zipped)
        found["dual zip"] = self.scored([merged])
        for name, options in STEPS.items():
            began = time.process_time()
            found[f"+ {name}"] = self.scored([self.calibrated(merged, zipped, **options)])
            found[f"seconds of {name}"] = (time.process_time() - began, 0.0)
        return found | self.controls(merged, zipped)

    def controls(self, merged: nn.Module, zipped: Alignment) -> dict[str, Scores]:
        """The same full refit without what the merge is about."""
        aligned = align(self.modules, self.symmetry, batches=self.batches)
        identity = identity_alignment(self.symmetry, 2)
        moved = self.symmetry.random_permutations(seed=0)
        random = Alignment(self.symmetry, (self.symmetry.identity(), moved))
        found = {
            "control: first model alone": self.scored([self.calibrated(self.modules[0], aligned)]),
            "control: random alignment": self.scored([self.calibrated(self.merged(random), random)]),
            "control: plain average": self.scored([self.calibrated(self.merged(identity), identity)]),
            "control: ridge from pixels": self.embedded(self.from_pixels()),
        }
        cropped = load_images(DATASET, "calibration", where={"domain": "half"}).inputs[: len(self.images)]
        self.batches = cropped.split(BATCH)  # from here on this cell is of the other domain
        self.modules = [reset_normalization(module, self.batches) for module in self.trained]
        other = self.calibrated(self.merged(zipped), zipped)
        reset = reset_normalization(other, self.images.split(BATCH))  # as any model that meets another domain
        return found | {"control: calibrated on cropped pictures": self.scored([reset])}

    def from_pixels(self) -> Tensor:
        """Embeddings of the test pictures by a ridge from pixels to the mean of the models' outputs, centred."""
        target, x = self.ensemble().double(), self.images.flatten(1).double()
        shift, middle = x.mean(dim=0), target.mean(dim=0)
        gram = (x - shift).T @ (x - shift) / len(x)
        damped = gram + FULL["ridge"] * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
        weights = torch.linalg.solve(damped, (x - shift).T @ (target - middle) / len(x))
        return ((test_pictures()[0].inputs.flatten(1).double() - shift) @ weights).float()


def main() -> None:
    parser = pair_parser(__doc__)
    parser.add_argument("--pair", nargs=2, default=NAMES, metavar="NAME", help="two models on disjoint classes")
    arguments = parser.parse_args()
    cells = on_pairs(Cell, arguments, arguments.pair)
    timed = [name for name in cells[0][0] if name.startswith("seconds")]
    print_rows(cells, [name for name in cells[0][0] if name not in timed])
    for name in timed:
        print(f"{name}: {mean(cell[name][0] for pair in cells for cell in pair):.1f}")


if __name__ == "__main__":
    main()
