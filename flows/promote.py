"""Make the candidate of a registered model its champion, if it passes the gates: `python -m flows.promote --help`."""

from __future__ import annotations

import argparse
import sys

from prefect import flow

from mergeline.errors import InputError
from mergeline.plan import Plan
from mergeline.redaction import redact
from tasks.promotion import decide, roll_back
from tasks.promotion_record import Decision

REFUSED = 3


@flow(name="promote", flow_run_name="{plan.name}")
def promote(plan: Plan, version: str | None = None, rollback: bool = False) -> Decision:
    """Judge the candidate, or a version that is named, by the plan's gates; or go back to the champion before."""
    return roll_back(plan) if rollback else decide(plan, version)


def main() -> int:
    """Exit status 0: done; 1: failed, may succeed later; 2: bad input; 3: refused."""
    options = _parser().parse_args()
    try:
        from flows.command_line import quiet_prefect
        from mergeline.plan_file import load_plan

        plan = load_plan(options.params, options.set)
        quiet_prefect()
        decision = promote(plan, options.version, options.rollback)
    except InputError as error:
        print(redact(str(error)), file=sys.stderr)
        return 2
    except (ConnectionError, TimeoutError) as error:
        print(
            redact(f"not decided, or not carried out; the same command goes on from where this ended: {error}"),
            file=sys.stderr,
        )
        return 1
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
