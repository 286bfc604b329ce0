"""Measure the newest methods for one base on four fine-tunings of MiniLM (docs/text.md); prints a Markdown table.

    make text-zoo
    python -m benchmarks.text_methods [METHOD...]

Every method but the average has four settings, of which one is chosen on the validation texts and measured on the test
texts. The methods that want evidence measure each model on the calibration texts of its own task.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergeline.checkpoints.readers import open_checkpoint
from mergeline.evaluation.debian_packages import TASKS
from mergeline.evaluation.metrics import accuracy, predict_logits
from mergeline.evaluation.prototypes import load_prototypes, prototype_logits
from mergeline.evaluation.score import Score, mean_score
from mergeline.evaluation.texts import read_texts
from mergeline.evaluation.tokens import attention_mask
from mergeline.evidence.gram import gram_matrices
from mergeline.evidence.merged_gram import merged_gram_matrices
from mergeline.merging import registry
from mergeline.merging.engine import merge
from mergeline.models.text_encoder import sentence_bert
from mergeline.models.text_zoo import classes_of

DATA, ZOO, BATCH = Path("data/datasets/debian_packages"), Path("data/text_zoo"), 100
SCALES = [{"scale": scale} for scale in (0.4, 0.6, 0.8, 1.0)]
ALPHAS = [{"alpha": alpha} for alpha in (0.5, 0.7, 0.9, 1.0)]
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "average": [{}],
    "task_arithmetic": SCALES,
    "ties": [{"scale": scale} for scale in (0.5, 1.0, 1.5, 2.0)],
    "pcb": [{"variant": "nlp", "keep_ratio": 0.2, "scale": scale} for scale in (0.6, 0.8, 1.0, 1.2)],
    "regmean": ALPHAS,
    "regmean_plusplus": ALPHAS,
    "wudi": [{"learning_rate": 1e-3, **scale} for scale in SCALES],
    "wudi_closed": SCALES,
    "tsv": [{"scale": scale} for scale in (0.7, 1.0, 1.4, 2.0)],
    "iso_c": [{"scale": scale} for scale in (1.0, 2.0, 4.0, 8.0)],
}


class TextZoo:
    """The four fine-tunings and their base, and the texts that measure them."""

    def __init__(self) -> None:
        self.module = sentence_bert().eval()
        self.models = [open_checkpoint(ZOO / f"{task}.safetensors") for task in TASKS]
        self.base = open_checkpoint(ZOO / "base.safetensors")
        self._prototypes = load_prototypes(DATA / "prototypes.safetensors").rows

    def texts(self, split: str, task: str) -> Any:
        """The labelled texts of a task."""
        return read_texts(
            DATA / f"{split}.parquet", where={"task": task}, tokenizer=ZOO / "tokenizer.json", max_length=20
        )

    def scores(self, state: dict[str, Tensor], split: str) -> dict[str, Score]:
        """Accuracy of a model at every task, and their mean."""
        self.module.load_state_dict(state)
        found = {}
        for task in TASKS:
            data = self.texts(split, task)
            logits = prototype_logits(predict_logits(self.module, data.inputs, BATCH), self._prototypes)
            found[task] = accuracy(logits, data.labels, classes_of(task))
        return found | {"mean": mean_score(list(found.values()))}

    def merged(self, method: str, options: dict[str, Any]) -> dict[str, Tensor]:
        """The merged state dict of a setting of a method."""
        entry, given = registry.get(method), {}
        if entry.needs_base:
            given["base"] = self.base
        batches = [list(self.texts("calibration", task).inputs.split(BATCH)) for task in TASKS]
        if entry.evidence == "gram":
            given["evidence"] = [
                gram_matrices(self._loaded(model), own, attended=attention_mask)
                for model, own in zip(self.models, batches, strict=True)
            ]
        elif entry.evidence == "merged_gram":
            module = self._loaded(self.models[0])
            given["evidence"] = merged_gram_matrices(module, self.models, batches, attended=attention_mask, **options)
        return dict(merge(self.models, method=method, **given, **options))

    def chosen(self, method: str) -> dict[str, Any]:
        """The setting that the validation texts choose, measured on the test texts; CPU-seconds of one merge."""
        best: tuple[Score, dict[str, Any], dict[str, Tensor]] | None = None
        seconds, tried = 0.0, {}
        for options in SETTINGS[method]:
            began = time.process_time()
            state = self.merged(method, options)
            seconds += time.process_time() - began
            score = self.scores(state, "validation")["mean"]
            tried[_setting(options)] = str(score)
            if best is None or score.value > best[0].value:
                best = (score, options, state)
        assert best is not None
        print(json.dumps({"method": method, "validation": tried}), file=sys.stderr, flush=True)
        return {
            "options": best[1],
            "validation": best[0],
            "test": self.scores(best[2], "test"),
            "seconds": seconds / len(SETTINGS[method]),
        }

    def _loaded(self, model: Any) -> torch.nn.Module:
        self.module.load_state_dict(dict(model))
        return self.module


def _setting(options: dict[str, Any]) -> str:
    return " ".join(f"{name} {value}" for name, value in options.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", help=f"of {', '.join(SETTINGS)} (default: all)")
    methods = parser.parse_args().methods or list(SETTINGS)
    if unknown := set(methods) - set(SETTINGS):
        parser.error(f"no such method: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    zoo = TextZoo()
    print(f"| method | {' | '.join(TASKS)} | tasks | tasks, validation | seconds | chosen |")
    print(f"| --- |{' --: |' * (len(TASKS) + 3)} --- |")
    for method in methods:
        found = zoo.chosen(method)
        scores = [str(score) for score in found["test"].values()]
        columns = [*scores, str(found["validation"]), f"{found['seconds']:.0f}", _setting(found["options"])]
        print(f"| {method} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
