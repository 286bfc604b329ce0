"""The shipped data set, from Fashion-MNIST as published: `python -m flows.prepare_data`."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prefect import flow

from flows.command_line import write_data
from tasks.datasets import write_prototypes, write_splits

if TYPE_CHECKING:
    from mergeline.evaluation.fashion_mnist import Split

OUTPUT = Path("data/datasets/fashion_mnist")
RAW = Path("data/raw/fashion_mnist")
IDX_FOLDER = Path("/usr/share/datasets/fashion-mnist")
REVISION = "531be5e2ccc9dba0c201ad3ae567a4f3d16ecdd2"


@flow(name="prepare-data", validate_parameters=False)
def prepare_data(
    source: Literal["auto", "hub", "idx"] = "auto",
    idx_folder: Path = IDX_FOLDER,
    revision: str = REVISION,
    output: Path = OUTPUT,
    raw: Path = RAW,
    splits: Mapping[str, "Split"] | None = None,
) -> list[Path]:
    """Read the pictures, choose and crop them, write one Parquet file per split; then the label prototypes.

    splits: which pictures make which split; the shipped ones where not given.
    """
    files = write_splits(source, idx_folder, revision, output, raw, splits)
    return [*files, write_prototypes(output)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m flows.prepare_data", description=__doc__)
    parser.add_argument(
        "--source", choices=["auto", "hub", "idx"], default="auto", help="auto: the hub, else the files"
    )
    parser.add_argument("--idx-folder", type=Path, default=IDX_FOLDER, help="IDX files (apt: dataset-fashion-mnist)")
    parser.add_argument("--revision", default=REVISION, help="commit of the data set on the hub")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the data set goes")
    parser.add_argument("--raw", type=Path, default=RAW, help="where the training pictures go")
    return write_data(prepare_data, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
