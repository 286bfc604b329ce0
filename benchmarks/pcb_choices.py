"""Measure the variants of PCB-Merging, and the methods beside it, on specialists of one base; prints a Markdown table.

    python -m flows.train_zoo --first-seed 100 --zoo FOLDER          # another zoo; the first one is shipped
    python -m benchmarks.pcb_choices data/zoo FOLDER...

Every zoo has two teams of two specialists each, and each team has its base. The options of a method are chosen on the
validation pictures and measured on the test pictures: mean accuracy of the two tasks, and joint accuracy over all ten
classes, in percent, in the domain of the team. Normalisation is reset on the calibration pictures of that domain.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import product
from math import sqrt
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any, get_args

import torch
from torch import Tensor

from mergeline.balancing.variants import VariantName
from mergeline.calibration.normalization import reset_normalization
from mergeline.evaluation.datasets import LabelledExamples, load_images
from mergeline.evaluation.metrics import accuracy, predict_logits
from mergeline.evaluation.prototypes import load_prototypes, prototype_logits
from mergeline.merging.engine import merge, method_statistics
from mergeline.models.resnet import resnet

DATASET = Path("data/datasets/fashion_mnist")
SMALL: dict[str, Any] = {"blocks": (1, 1, 1), "width": 16, "outputs": 384, "stem_stride": 2}
TEAMS = {
    "base-a": ("clean", {"a-clean-02478": (0, 2, 4, 7, 8), "a-clean-13569": (1, 3, 5, 6, 9)}),
    "base-b": ("half", {"b-half-12679": (1, 2, 6, 7, 9), "b-half-03458": (0, 3, 4, 5, 8)}),
}
KEEP_RATIOS = (0.05, 0.1, 0.2, 0.5)
SCALES = (0.5, 0.7, 1.0, 1.4, 2.0)
SUM_SCALES = (0.2, 0.3, 0.4, 0.5, 0.7, 1.0)

Scores = tuple[float, float]
"""Mean accuracy of the tasks and joint accuracy, in percent."""


@cache
def pictures(split: str, domain: str) -> LabelledExamples:
    return load_images(DATASET, split, where={"domain": domain})


class Team:
    """Two specialists of one base, and the data of their domain."""

    def __init__(self, zoo: Path, base: str) -> None:
        self.domain, self.tasks = TEAMS[base]
        self.base = str(zoo / f"{base}.safetensors")
        self.models = [str(zoo / f"{name}.safetensors") for name in self.tasks]
        self.prototypes = load_prototypes(DATASET / "prototypes.safetensors").rows
        self.batches = pictures("calibration", self.domain).inputs.split(100)

    def scores(self, state: Mapping[str, Tensor], split: str) -> Scores:
        module = resnet(**SMALL)
        module.load_state_dict(state)
        reset, data = reset_normalization(module, self.batches), pictures(split, self.domain)
        logits = prototype_logits(predict_logits(reset, data.inputs), self.prototypes)
        tasks = [accuracy(logits, data.labels, task).value for task in self.tasks.values()]
        return 100 * mean(tasks), 100 * accuracy(logits, data.labels).value

    def candidates(
        self, method: str, grid: Sequence[dict[str, Any]], scales: Sequence[float]
    ) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
        """The merged state dict of every setting; what a method knows of the whole models is measured once for all
        scales."""
        for options in grid:
            given = {"base": self.base, "method": method, **options}
            statistics = method_statistics(self.models, **given)
            for scale in scales:
                kept = {} if statistics is None else {"statistics": statistics}
                yield {"scale": scale, **options}, dict(merge(self.models, **given, **kept, scale=scale))

    def best(self, method: str, grid: Sequence[dict[str, Any]], scales: Sequence[float]) -> dict[str, Any]:
        """The setting with the highest sum of both scores on the validation pictures, measured on the test pictures."""
        found = [
            (sum(self.scores(state, "validation")), options, state)
            for options, state in self.candidates(method, grid, scales)
        ]
        value, options, state = max(found, key=lambda entry: entry[0])
        return {"options": options, "validation": value, "scores": self.scores(state, "test")}


def rows(zoo: Path, base: str) -> dict[str, Any]:
    """Everything that is measured on one team, by name."""
    torch.set_num_threads(1)
    team = Team(zoo, base)
    ratios = [{"keep_ratio": ratio} for ratio in KEEP_RATIOS]
    found: dict[str, Any] = {"average": {"scores": team.scores(dict(merge(team.models, method="average")), "test")}}
    for variant in get_args(VariantName):
        grid = [{"variant": variant, **options} for options in ratios]
        found[f"pcb, {variant}"] = team.best("pcb", grid, SCALES)
    found["ties"] = team.best("ties", ratios, SCALES)
    found["task_arithmetic"] = team.best("task_arithmetic", [{}], SUM_SCALES)
    for granularity, variant in product(("layer", "tensor"), ("reference", "pairwise")):
        grid = [{"variant": variant, "granularity": granularity, **options} for options in ratios]
        found[f"pcb, {variant}, {granularity}"] = team.best("pcb", grid, SCALES)
    print(json.dumps({"zoo": str(zoo), "base": base, **found}), file=sys.stderr, flush=True)
    return found


def on_teams(measured: Callable[[Path, str], dict[str, Any]], about: str | None) -> list[dict[str, Any]]:
    """What is measured of every team of the zoos that the command line names, each in a process of its own."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoos", nargs="+", type=Path, help="folders, each with two bases and four specialists")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    teams = list(product(arguments.zoos, TEAMS))
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        return list(pool.map(measured, *zip(*teams, strict=True)))


def main() -> None:
    cells = on_teams(rows, __doc__)
    reference = [cell["pcb, reference"]["scores"] for cell in cells]
    print("| method | tasks | joint | joint − reference, per team | joint − reference | chosen keep ratios |")
    print("| --- | --: | --: | --- | --: | --- |")
    for name in cells[0]:
        scores = [cell[name]["scores"] for cell in cells]
        gains = [own[1] - other[1] for own, other in zip(scores, reference, strict=True)]
        chosen = [str(cell[name].get("options", {}).get("keep_ratio", "")) for cell in cells]
        columns = [
            *(spread([score[place] for score in scores]) for place in (0, 1)),
            " ".join(f"{gain:+.1f}" for gain in gains),
            spread(gains),
            " ".join(chosen).strip(),
        ]
        print(f"| {name} | {' | '.join(columns)} |")


def spread(values: Sequence[float]) -> str:
    """Mean and standard error."""
    return f"{mean(values):.1f} ± {stdev(values) / sqrt(len(values)):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


if __name__ == "__main__":
    main()
