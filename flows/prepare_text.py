"""The text data set, from the index of Debian packages on this machine: `python -m flows.prepare_text`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prefect import flow

from flows.command_line import write_data
from tasks.datasets import write_package_prototypes, write_package_splits

OUTPUT = Path("data/datasets/debian_packages")


@flow(name="prepare-text", validate_parameters=False)
def prepare_text(index: Path | None = None, output: Path = OUTPUT) -> list[Path]:
    """Read the index, choose the examples, write one Parquet file per split; then the label prototypes."""
    files = write_package_splits(index, output)
    return [*files, write_package_prototypes(output)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m flows.prepare_text", description=__doc__)
    parser.add_argument("--index", type=Path, help="what `apt-cache dumpavail` printed; default: ask it")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the data set goes")
    return write_data(prepare_text, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
