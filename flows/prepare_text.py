"""The text data set, from the index of Debian packages on this machine: `python -m flows.prepare_text`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prefect import flow

from flows.command_line import quiet_prefect
from mergeline.errors import InputError
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
    quiet_prefect()
    try:
        files = prepare_text(**vars(parser.parse_args(arguments)))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    for file in files:
        print(f"{file.stat().st_size:>10,} bytes  {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
