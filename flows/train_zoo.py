"""The shipped checkpoints, trained from scratch in a few minutes on two cores: `python -m flows.train_zoo`."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.futures import PrefectFuture
from prefect.task_runners import ProcessPoolTaskRunner

from flows.command_line import exit_status, quiet_prefect
from mergeline.errors import InputError
from tasks.zoo import train_checkpoint

if TYPE_CHECKING:
    from mergeline.models.zoo import ZooModel

DATASET = Path("data/datasets/fashion_mnist")
RAW = Path("data/raw/fashion_mnist")
ZOO = Path("data/zoo")


# processes, because the seed and PyTorch's determinism are global to one
@flow(name="train-zoo", task_runner=ProcessPoolTaskRunner(max_workers=2), validate_parameters=False)  # type: ignore[arg-type]
def train_zoo(
    models: Sequence["ZooModel"], dataset: Path = DATASET, raw: Path = RAW, zoo: Path = ZOO
) -> list[dict[str, Any]]:
    """Train each model as soon as its base is there; then write the manifest."""
    for file in (raw / "train.parquet", dataset / "test.parquet", dataset / "prototypes.safetensors"):
        if not file.is_file():
            raise InputError(f"{file}: not there; make it with: python -m flows.prepare_data")
    futures: dict[str, PrefectFuture] = {}
    for model in models:
        bases = [futures[model.base]] if model.base else []
        futures[model.name] = train_checkpoint.submit(model, dataset, raw, zoo, wait_for=bases, return_state=False)
    entries = [future.result() for future in futures.values()]
    (zoo / "manifest.json").write_text(json.dumps({"models": entries}, indent=2) + "\n")
    return entries


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, 1 where it failed, 2 for bad input, 130 where it was stopped."""
    parser = argparse.ArgumentParser(prog="python -m flows.train_zoo", description=__doc__)
    parser.add_argument("--dataset", type=Path, default=DATASET, help="test pictures and label prototypes")
    parser.add_argument("--raw", type=Path, default=RAW, help="training pictures (python -m flows.prepare_data)")
    parser.add_argument("--zoo", type=Path, default=ZOO, help="where the checkpoints go")
    parser.add_argument("--first-seed", type=int, default=0, help="added to every seed: another zoo of the same recipe")
    work = partial(_train, parser.parse_args(arguments))
    return exit_status(work, what="the training", again="the same command again begins anew")


def _train(options: argparse.Namespace) -> None:
    from mergeline.models.zoo import ZOO as MODELS

    quiet_prefect()
    models = [replace(model, seed=model.seed + options.first_seed) for model in MODELS]
    for entry in train_zoo(models, options.dataset, options.raw, options.zoo):
        score = entry["accuracy"]
        print(f"{entry['name']:15} {100 * score['value']:5.1f} ± {100 * score['standard_error']:.1f} %")


if __name__ == "__main__":
    sys.exit(main())
