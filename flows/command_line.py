"""What flows share at the terminal: options, errors in one sentence, exit codes 0 (ok), 1 (failed), 2 (bad input)."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flows.show_result import save_links, show
from mergeline.errors import InputError
from mergeline.redaction import redact

if TYPE_CHECKING:
    from mergeline.plan import Plan
    from tasks.recording import Outcome


def run(flow: Callable[[Plan], Outcome]) -> int:
    """Parse the command line, load the plan, run the flow, show what came out."""
    options = _parser().parse_args()
    again = "the same command again resumes after the last stage that was done; `make ui` shows its log"
    return exit_status(partial(_run, flow, options), what="the run", again=again)


def exit_status(work: Callable[[], int | None], *, what: str, again: str) -> int:
    """Do what a command is for, and say in one sentence what stopped it.

    what: failed, in words; again: what the same command does when it is given again. Returns what the work does, or 0;
    1 where it failed (with the traceback where nobody outside is to blame), 2 for bad input, 130 where it was stopped.
    """
    try:
        return work() or 0
    except InputError as error:
        print(redact(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; {again}", file=sys.stderr)
        return 130
    except (ConnectionError, TimeoutError) as error:
        print(redact(f"{what} failed, and may succeed later: {error}"), file=sys.stderr)
        print(again, file=sys.stderr)
    except Exception as error:
        print(redact(traceback.format_exc()), file=sys.stderr)
        print(redact(f"{what} failed: {type(error).__name__}: {error}"), file=sys.stderr)
        print(again, file=sys.stderr)
    return 1


def _run(flow: Callable[[Plan], Outcome], options: argparse.Namespace) -> int:
    from mergeline.plan_file import load_plan

    plan = load_plan(options.params, options.set)
    if options.plan:
        return _show_plan(plan)
    from tasks.changes import look_for_news, nothing_to_do, remembered

    news = look_for_news(plan) if options.if_changed else None
    if news is not None:
        print(news.summary)
    if news is not None and nothing_to_do(plan, news):
        return _show_result(plan, options)
    quiet_prefect()
    from tasks.policy import recomputing

    with recomputing(options.fresh):
        outcome = remembered(flow, plan, news.inputs if news else None)
    save_links(plan.output, outcome.recorded)
    print(outcome.stages)
    return _show_result(plan, options)


def write_data(write: Callable[..., Sequence[Path]], options: argparse.Namespace) -> int:
    """Call a flow that writes a data set with these options, and show its files; as `exit_status`."""

    def work() -> None:
        quiet_prefect()
        for file in write(**vars(options)):
            print(f"{file.stat().st_size:>10,} bytes  {file}")

    return exit_status(work, what="the preparation", again="the same command again begins anew")


def _show_result(plan: Plan, options: argparse.Namespace) -> int:
    if not options.no_table:
        show(plan.output)
    return 0


def _show_plan(plan: Plan) -> int:
    """Say what a run would do, read, write and take; exit code 2 where it cannot work, after saying why."""
    from rich.console import Console

    from mergeline.comparison import aligns, comparison_rows
    from mergeline.preflight.inspect import inspect_plan
    from mergeline.report.calibration import calibration_steps
    from mergeline.report.preflight import show_preflight
    from tasks.publishing import published_beside
    from tasks.store import held

    counts = (("task model", plan.task_models), ("base", plan.bases), ("task", plan.tasks))
    print(f"{plan.name}: " + ", ".join(f"{len(found)} {noun}{'s' * (len(found) != 1)}" for noun, found in counts))
    if aligns(plan) and plan.align:
        print(f"align {', '.join(plan.families[1:])} to {plan.families[0]} in {plan.align.space} space")
    options = plan.merge.options | ({"granularity": plan.merge.granularity} if plan.merge.granularity else {})
    print(f"merge by {plan.merge.method} {options or ''}, publish into {plan.output}")
    if plan.calibrate:
        print(f"calibrate: {calibration_steps(plan.calibrate)}")
    for row in comparison_rows(plan) if plan.tasks else ():
        print(f"  {row.label:<48} {row.kind} of {', '.join(row.members)}")
    found = inspect_plan(plan, held=held, beside=published_beside(plan, measured=bool(plan.tasks)))
    show_preflight(found, Console(width=None if sys.stdout.isatty() else 140, highlight=False))
    for fault in found.faults:
        print(fault, file=sys.stderr)
    return 2 if found.faults else 0


def quiet_prefect() -> None:
    """Leave the terminal to the progress bar, our own warnings and the table; Prefect's log goes to its pages alone."""
    from prefect.logging.configuration import setup_logging
    from prefect.logging.handlers import PrefectConsoleHandler

    from tasks.logs import log_to_terminal

    setup_logging()
    log_to_terminal()
    if "PREFECT_LOGGING_LEVEL" not in os.environ:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "ERROR")  # of the workers of a cluster
        for name in ("", "prefect", "prefect.flow_runs", "prefect.task_runs"):
            for handler in logging.getLogger(name).handlers:
                if isinstance(handler, PrefectConsoleHandler):
                    handler.addFilter(lambda _record: False)
        ours = logging.getLogger("tasks")
        if not ours.handlers:
            ours.addHandler(logging.StreamHandler())
            ours.handlers[0].setLevel(logging.WARNING)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Merge the checkpoints of a plan, evaluate the result, publish it.")
    parser.add_argument("--params", default="params.yaml", metavar="FILE", help="the plan (default: params.yaml)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one field: merge.keep_ratio=0.2"
    )
    parser.add_argument("--plan", action="store_true", help="check the plan, say what would be done, and stop")
    parser.add_argument(
        "--if-changed", action="store_true", help="do nothing where no input changed since the last run that succeeded"
    )
    parser.add_argument("--fresh", action="store_true", help="compute everything anew; nothing comes from the cache")
    parser.add_argument("--no-table", action="store_true", help="do not print the result table")
    return parser
