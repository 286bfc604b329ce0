"""Measure the newest methods for one base beside the older ones, with as many settings each; prints a Markdown table.

    python -m flows.train_zoo --first-seed 100 --zoo FOLDER          # another zoo; the first one is shipped
    python -m benchmarks.newest_methods data/zoo FOLDER...

Every zoo has two teams of two specialists each, and each team has its base (`benchmarks.pcb_choices`). Every method but
the average has eight settings. One is chosen on the validation pictures, by the sum of both scores, and measured on the
test pictures. Normalisation is reset on the calibration pictures of the team's domain, which are the evidence, too: all
of them for both models, as unlabelled data are, or for each model those of its own classes.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.pcb_choices import SMALL, Team, on_teams, pictures, spread
from mergeline.checkpoints.readers import open_checkpoint
from mergeline.evidence.batches import labelled_batches
from mergeline.evidence.gram import gram_matrices
from mergeline.evidence.merged_gram import merged_gram_matrices
from mergeline.merging import registry
from mergeline.merging.engine import merge
from mergeline.models.resnet import resnet

ALPHAS = [{"alpha": alpha} for alpha in (0.0, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99, 1.0)]


def scales(*values: float) -> list[dict[str, Any]]:
    """Settings of one factor."""
    return [{"scale": value} for value in values]


def crossed(**values: list[Any]) -> list[dict[str, Any]]:
    """Every combination."""
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


SETTINGS: dict[str, list[dict[str, Any]]] = {
    "average": [{}],
    "task_arithmetic": scales(0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.4),
    "ties": crossed(keep_ratio=[0.1, 0.3], scale=[0.7, 1.0, 1.4, 2.0]),
    "pcb": [{"variant": "pairwise", **own} for own in crossed(keep_ratio=[0.1, 0.3], scale=[0.7, 1.0, 1.4, 2.0])],
    "regmean": ALPHAS,
    "regmean, own classes": ALPHAS,
    "regmean_plusplus, own classes": ALPHAS,
    "wudi": crossed(learning_rate=[1e-5, 1e-4, 1e-3, 1e-2], scale=[0.7, 1.0]),
    "wudi_closed": crossed(ridge=[1e-6, 1e-4, 1e-2, 1.0], scale=[1.0, 1.4]),
    "tsv": scales(0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0),
    "iso_c": scales(0.5, 1.0, 1.4, 2.0, 3.0, 4.0, 6.0, 8.0),
}
REFERENCE = "task_arithmetic"


class MeasuredTeam(Team):
    """A team whose models are also measured, for the methods that want evidence."""

    def merged(self, row: str) -> Iterator[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
        """The merged state dict of every setting of a method."""
        method, _, own = row.partition(", ")
        batches = [self.own_batches(classes) if own else self.batches for classes in self.tasks.values()]
        models = [open_checkpoint(path) for path in self.models]
        kind, given = registry.get(method).evidence, {"base": self.base} if registry.get(method).needs_base else {}
        for options in SETTINGS[row]:
            if kind == "gram":
                given["evidence"] = [
                    gram_matrices(self._module(model), own_pictures)
                    for model, own_pictures in zip(models, batches, strict=True)
                ]
            elif kind == "merged_gram":
                module = self._module(models[0])
                given["evidence"] = merged_gram_matrices(module, models, batches, **options)
            yield options, dict(merge(models, method=method, **given, **options))

    def own_batches(self, classes: tuple[int, ...]) -> list[torch.Tensor]:
        """The calibration pictures of some classes: what a specialist's own data look like."""
        data = pictures("calibration", self.domain)
        return [inputs for inputs, _ in labelled_batches(data.inputs, data.labels, classes, None, 100)]

    def chosen(self, method: str) -> dict[str, Any]:
        """The setting that the validation pictures choose, measured on the test pictures; seconds of one merge."""
        began = time.process_time()
        made = list(self.merged(method))
        seconds = (time.process_time() - began) / len(made)
        validation = [self.scores(state, "validation") for _, state in made]
        best = max(range(len(made)), key=lambda place: sum(validation[place]))
        options, state = made[best]
        return {"options": options, "scores": self.scores(state, "test"), "seconds": seconds, "validation": validation}

    @staticmethod
    def _module(state: Any) -> torch.nn.Module:
        module = resnet(**SMALL)
        module.load_state_dict(dict(state))
        return module


def rows(zoo: Path, base: str) -> dict[str, Any]:
    """Every method on one team."""
    torch.set_num_threads(1)
    team = MeasuredTeam(zoo, base)
    found = {method: team.chosen(method) for method in SETTINGS}
    print(json.dumps({"zoo": str(zoo), "base": base, **found}), file=sys.stderr, flush=True)
    return found


def main() -> None:
    cells = on_teams(rows, __doc__)
    print(f"| method | tasks | joint | tasks − {REFERENCE} | joint − {REFERENCE} | better in | seconds | chosen |")
    print("| --- | --: | --: | --: | --: | --: | --: | --- |")
    for method in SETTINGS:
        own, other = ([cell[name]["scores"] for cell in cells] for name in (method, REFERENCE))
        gains = [[a[place] - b[place] for a, b in zip(own, other, strict=True)] for place in (0, 1)]
        chosen = Counter(" ".join(f"{value:g}" for value in _numbers(cell[method]["options"])) for cell in cells)
        columns = [
            *(spread([score[place] for score in own]) for place in (0, 1)),
            *(spread(gain) for gain in gains),
            f"{sum(sum(pair) > 0 for pair in zip(*gains, strict=True))} of {len(cells)}",
            f"{sum(cell[method]['seconds'] for cell in cells) / len(cells):.2f}",
            ", ".join(f"{setting} ({times}x)" for setting, times in chosen.most_common()),
        ]
        print(f"| {method} | {' | '.join(columns)} |")


def _numbers(options: dict[str, Any]) -> list[float]:
    return [value for value in options.values() if isinstance(value, float)]


if __name__ == "__main__":
    main()
