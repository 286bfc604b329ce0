"""Show which units of a plan's architecture may change places, as a table, YAML and a drawing."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from prefect import flow

from flows.command_line import exit_status, quiet_prefect
from mergeline.plan import Plan
from tasks.architecture import load_symmetry, prove_symmetry
from tasks.job import Job
from tasks.store import ArtifactRef


@flow(name="inspect-symmetry", flow_run_name="{plan.name}")
def inspect_symmetry(plan: Plan) -> ArtifactRef:
    """Derive the symmetry of the architecture, or read it, and prove it."""
    return prove_symmetry(**Job(plan).symmetry_rule)


def main() -> int:
    """Print the table, write YAML and SVG.

    Exit status 0, 1 where it failed, 2 for bad input, 130 where it was stopped.
    """
    parser = argparse.ArgumentParser(prog="python -m flows.inspect_symmetry", description=__doc__)
    parser.add_argument("--params", default="params.yaml", metavar="FILE", help="the plan (default: params.yaml)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one field")
    parser.add_argument("--output", type=Path, default=Path("data/symmetry"), help="folder for symmetry.yaml and .svg")
    work = partial(_inspect, parser.parse_args())
    return exit_status(work, what="the inspection", again="the same command again takes what was done from the cache")


def _inspect(options: argparse.Namespace) -> None:
    from mergeline.plan_file import load_plan

    plan = load_plan(options.params, options.set)
    quiet_prefect()
    symmetry = load_symmetry(inspect_symmetry(plan))
    from rich.console import Console

    from mergeline.report.symmetry import draw_symmetry, symmetry_table

    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "symmetry.yaml").write_text(symmetry.to_yaml())
    draw_symmetry(symmetry, options.output / "symmetry.svg")
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(symmetry_table(symmetry))
    for subject, note in symmetry.notes.items():
        console.print(f"  {subject}: {note}", soft_wrap=True)
    console.print(f"  {options.output / 'symmetry.yaml'}  {options.output / 'symmetry.svg'}")


if __name__ == "__main__":
    sys.exit(main())
