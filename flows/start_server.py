"""Start a Prefect server that stays, until Ctrl-C: `python -m flows.start_server`, or with what that server takes."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from typing import Any


def main(arguments: Sequence[str]) -> None:
    """Run `prefect server start` in this process, with a scheduler that works."""
    mend_scheduler()
    quiet = [] if "--log-level" in arguments else ["--log-level", "WARNING"]
    sys.argv = ["prefect", "server", "start", *quiet, *arguments]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


def mend_scheduler() -> None:
    """Let Prefect's scheduler insert its runs where SQLAlchemy is 2.1 or newer.

    It inserts them with their states among the values. SQLAlchemy 2.0 ignores what is no column; 2.1 asks how to, and
    without an answer no scheduled run is ever made (Prefect 3.8.8 says so in the server's log alone).
    """
    from prefect.server.database.orm_models import FlowRun, TaskRun
    from sqlalchemy import inspect
    from sqlalchemy.ext.hybrid import hybrid_property

    # A pin sqlalchemy<2.1 resolves with all other pins (to 2.0.58); this mends both, whatever is installed.
    if not hasattr(hybrid_property, "bulk_dml"):
        return
    for table in (FlowRun, TaskRun):
        state: Any = inspect(table).all_orm_descriptors["state"]  # type: ignore[attr-defined]
        if getattr(state, "bulk_dml_setter", None) is None:
            state.inplace.bulk_dml(lambda _table, _values, _state: None)


if __name__ == "__main__":
    main(sys.argv[1:])
