"""What the stages of a run took: a small file per task run in MERGELINE_STATE, whichever process or worker ran it.

The processor time is that of the stage's own thread. The peak is of resident memory (mapped files count) of the whole
process while the stage ran: stages that run beside it on threads share it.
"""

from __future__ import annotations

import re
import resource
import shutil
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prefect.context import TaskRunContext
from pydantic import BaseModel, ConfigDict, ValidationError

from tasks._env import state_directory

FORGOTTEN = 7 * 24 * 3600  # seconds after which what a run measured that never ended is removed


class Measurement(BaseModel):
    """One task run. computed: False where its result came from the cache, which took nothing."""

    model_config = ConfigDict(frozen=True)

    stage: str
    computed: bool = False
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0


def asked(stage: str) -> None:
    """Note that a task run of a stage looks for its result; it counts as cached unless `measured` follows."""
    _write(Measurement(stage=stage))


@contextmanager
def measured(stage: str) -> Iterator[None]:
    """Measure the block as the work of the task run that it is part of; outside of one nothing is noted."""
    started, processor = time.perf_counter(), time.thread_time()
    with _peak() as peak:
        yield
    _write(
        Measurement(
            stage=stage,
            computed=True,
            seconds=time.perf_counter() - started,
            cpu_seconds=time.thread_time() - processor,
            peak_bytes=peak[0],
        )
    )


def measurements(flow_run: str) -> list[Measurement]:
    """What the task runs of a flow run took, so far."""
    found = []
    for path in sorted((_folder() / flow_run).glob("*.json")):
        with suppress(OSError, ValidationError):
            found.append(Measurement.model_validate_json(path.read_text(encoding="utf-8")))
    return found


def stage_metrics(flow_run: str) -> dict[str, float]:
    """Per stage: how many task runs, how many of them cached; of the others seconds, processor seconds (sums), peak."""
    by_stage: dict[str, list[Measurement]] = defaultdict(list)
    for found in measurements(flow_run):
        by_stage[found.stage].append(found)
    metrics: dict[str, float] = {}
    for stage, runs in by_stage.items():
        computed = [run for run in runs if run.computed]
        metrics |= {f"runs/{stage}": len(runs), f"cached/{stage}": len(runs) - len(computed)}
        if computed:
            metrics[f"seconds/{stage}"] = sum(run.seconds for run in computed)
            metrics[f"cpu_seconds/{stage}"] = sum(run.cpu_seconds for run in computed)
            metrics[f"peak_megabytes/{stage}"] = max(run.peak_bytes for run in computed) / 1e6
    return metrics


def forget(flow_run: str) -> None:
    """Remove what a run measured, once it is recorded; and what is left of runs that ended long ago in another way."""
    shutil.rmtree(_folder() / flow_run, ignore_errors=True)
    for folder in _folder().glob("*/"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > FORGOTTEN:
                shutil.rmtree(folder, ignore_errors=True)


def _write(found: Measurement) -> None:
    context = TaskRunContext.get()
    if context is None or context.task_run.flow_run_id is None:
        return
    path = _folder() / str(context.task_run.flow_run_id) / f"{context.task_run.id}.json"
    with suppress(OSError):  # a full disk fails the stage where it matters
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found.model_dump_json(), encoding="utf-8")


def _folder() -> Path:
    return state_directory() / ".prefect" / "measured"


# --- memory ----------------------------------------------------------------------------------------------------------

_mutex = threading.Lock()
_running: list[list[int]] = []  # the peak of every stage that runs in this process
_highest = [0]


def peak_of_process() -> int:
    """The most memory, in bytes, that this process ever held; the system's own figure begins anew with every stage."""
    with _mutex:
        return max(_highest[0], _peak_bytes())


@contextmanager
def _peak() -> Iterator[list[int]]:
    """A list of one number: the most memory, in bytes, that the process held while the block ran.

    Linux keeps that peak and can be told to begin anew; elsewhere it is the peak since the process began.
    """
    peak = [0]
    with _mutex:
        _take_peak()
        _running.append(peak)
    try:
        yield peak
    finally:
        with _mutex:
            _take_peak()
            _running[:] = [other for other in _running if other is not peak]


def _take_peak() -> None:
    """Give the peak of the time since the last call to all stages that ran in it."""
    found = _peak_bytes()
    for peak in (*_running, _highest):
        peak[0] = max(peak[0], found)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    with suppress(OSError):
        if line := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(line[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
