"""Make the candidate of a registered model its champion, if it passes the gates: `python -m flows.promote --help`."""

from __future__ import annotations

import argparse
import sys
from functools import partial

from prefect import flow

from flows.command_line import exit_status, quiet_prefect
from mergeline.plan import Plan
from tasks.promotion import decide, roll_back
from tasks.promotion_record import Decision

REFUSED = 3


@flow(name="promote", flow_run_name="{plan.name}")
def promote(plan: Plan, version: str | None = None, rollback: bool = False) -> Decision:
    """Judge the candidate, or a version that is named, by the plan's gates; or go back to the champion before."""
    return roll_back(plan) if rollback else decide(plan, version)


def main() -> int:
    """Exit status 0: done; 1: failed, may succeed later; 2: bad input; 3: refused; 130: stopped."""
    work = partial(_promote, _parser().parse_args())
    return exit_status(work, what="the promotion", again="the same command again goes on from where this ended")


def _promote(options: argparse.Namespace) -> int:
    from mergeline.plan_file import load_plan

    plan = load_plan(options.params, options.set)
    quiet_prefect()
    decision = promote(plan, options.version, options.rollback)
    print(decision)
    return REFUSED if decision.action == "refused" else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flows.promote", description=__doc__)
    parser.add_argument("--params", default="params.yaml", metavar="FILE", help="the plan (default: params.yaml)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one field: promotion.max_drop=0.2"
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--version", metavar="N", help="judge this version instead of the candidate")
    chosen.add_argument("--rollback", action="store_true", help="return to the champion before this one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
