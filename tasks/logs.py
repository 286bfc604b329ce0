"""What a run says while it works: one line per event, on Prefect's pages and, on demand, on the terminal.

MERGELINE_LOG=text or json prints the events, and what all libraries log, to stderr; json is one object per line. No
secret gets into a log record, whoever writes it (`mergeline.redaction`).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from mergeline.redaction import redact, redacted, scrub
from tasks.measuring import peak_of_process

EVENTS = logging.getLogger("mergeline.events")
FORMATS = ("text", "json")

_getting_ready = threading.Lock()
_ready = False


def tell(event: str, *, level: int = logging.INFO, **facts: Any) -> None:
    """Log one event with plain facts; those that are None are left out."""
    _get_ready()
    facts = {name: redacted(value) for name, value in facts.items() if value is not None}
    EVENTS.log(level, "%s", _sentence(event, facts), extra={"event": event, "facts": facts | _run_ids()})


@contextmanager
def told(what: str, name: str) -> Iterator[None]:
    """Tell that `what` called `name` starts, and how it ended, after how long, with how much memory at its peak."""
    started = perf_counter()
    tell(f"{what} started", name=name)
    try:
        yield
    except BaseException as error:
        scrub(error)  # Prefect keeps it, too
        facts = {"seconds": _since(started), "error": f"{type(error).__name__}: {error}"}
        tell(f"{what} failed", level=logging.ERROR, name=name, **facts)
        raise
    tell(f"{what} finished", name=name, seconds=_since(started), peak_rss_mb=peak_rss_mb())


def peak_rss_mb() -> int:
    """The most memory that this process has held so far, in MB."""
    return peak_of_process() // 1_000_000


def log_to_terminal() -> None:
    """As MERGELINE_LOG says: what all libraries log goes to stderr in one form, and Prefect's own console is silent."""
    chosen = os.environ.get("MERGELINE_LOG", "").lower()
    if chosen not in FORMATS:
        return
    from prefect.logging.configuration import setup_logging

    setup_logging()
    root = logging.getLogger()
    for name in ("", "prefect", "prefect.flow_runs", "prefect.task_runs", "prefect.extra"):
        logger = logging.getLogger(name)
        logger.handlers = [handler for handler in logger.handlers if not _prints(handler)]
        if name and not logger.propagate:
            logger.addHandler(_Terminal(chosen))
    root.addHandler(_Terminal(chosen))


def _prints(handler: logging.Handler) -> bool:
    from prefect.logging.handlers import PrefectConsoleHandler

    return isinstance(handler, PrefectConsoleHandler | _Terminal)


class _Terminal(logging.StreamHandler[Any]):
    """stderr as it is when a record comes: tests and Dask put others in its place."""

    def __init__(self, form: str) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(
            _JsonLines() if form == "json" else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
        )

    @property
    def stream(self) -> Any:
        """Where to."""
        return sys.stderr

    @stream.setter
    def stream(self, value: object) -> None:
        pass


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One record as one line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": getattr(record, "event", None) or record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = record.exc_text or self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _get_ready() -> None:
    """Send events to Prefect's pages, from every process that has some: workers of a cluster, too."""
    global _ready
    with _getting_ready:
        if _ready:
            return
        from prefect.logging.handlers import APILogHandler

        EVENTS.setLevel(logging.INFO)
        EVENTS.addHandler(APILogHandler())
        if os.environ.get("MERGELINE_LOG", "").lower() not in FORMATS:
            EVENTS.propagate = False  # the terminal has its progress bar
        log_to_terminal()
        _ready = True


def _sentence(event: str, facts: dict[str, Any]) -> str:
    return redact(" ".join([event, *(f"{name}={value}" for name, value in facts.items())]))


def _run_ids() -> dict[str, str]:
    from prefect.context import FlowRunContext, TaskRunContext

    stage, flow = TaskRunContext.get(), FlowRunContext.get()
    if stage is not None:
        return {"flow_run": str(stage.task_run.flow_run_id), "task_run": str(stage.task_run.id)}
    return {"flow_run": str(flow.flow_run.id)} if flow is not None and flow.flow_run is not None else {}


def _since(started: float) -> float:
    return round(perf_counter() - started, 3)


# --- no secret gets into a record ------------------------------------------------------------------------------------


def keep_secrets_out() -> None:
    """From now on every log record of this process is masked where it is made."""
    make = logging.getLogRecordFactory()
    if getattr(make, "masks_secrets", False):
        return

    def masked(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        try:
            said = record.getMessage()
        except Exception:  # a wrong format string: its handler says so
            return record
        if (clean := redact(said)) != said:
            record.msg, record.args = clean, None
        if record.exc_info and record.exc_info[1] is not None:
            text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            if (clean := redact(text)) != text:
                record.exc_text = clean  # what formatters take instead of the exception
        return record

    masked.masks_secrets = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(masked)


keep_secrets_out()
