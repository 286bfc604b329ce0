"""Turn a configuration of mergekit into a plan: python -m flows.import_mergekit config.yml [-o params.yaml]"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from mergeline.errors import InputError


def main() -> int:
    """Write the plan, or print it; exit status 0, or 2 with the lines that have no equivalent."""
    parser = argparse.ArgumentParser(prog="python -m flows.import_mergekit", description=__doc__)
    parser.add_argument("configuration", type=Path, help="the YAML file of mergekit")
    parser.add_argument("-o", "--output", type=Path, help="the plan to write (default: print it)")
    options = parser.parse_args()
    try:
        text = _plan_text(options.configuration)
        if options.output is not None:
            options.output.write_text(text)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{options.output}: cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    if options.output is None:
        print(text, end="")
    else:
        print(f"{options.output}: look at its first lines, then: ", end="")
        print(f"python -m flows.merge_and_evaluate --params {options.output} --plan")
    return 0


def _plan_text(path: Path) -> str:
    from mergeline.mergekit.convert import import_configuration

    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"{path}: cannot be read ({reason}); name the YAML file of mergekit") from None
    name = re.sub(r"[^\w-]", "-", path.stem) or "merge"
    return import_configuration(text, str(path), name=name).to_yaml()


if __name__ == "__main__":
    sys.exit(main())
