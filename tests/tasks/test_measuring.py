"""What stages took: a file per task run, whoever ran it."""

import threading
from pathlib import Path

import numpy as np
import pytest
from prefect import flow
from prefect.runtime import flow_run
from pydantic import BaseModel

from tasks import measuring
from tasks.measuring import forget, measured, measurements, stage_metrics
from tasks.policy import stage

pytestmark = pytest.mark.usefixtures("prefect_server", "state")


class Number(BaseModel):
    value: int


@stage("hold-memory")
def hold_memory(megabytes: int) -> Number:
    return Number(value=int(np.ones(megabytes << 20, np.uint8).sum()))


@stage("fails", retries=1)
def fails_once(path: str) -> Number:
    if not Path(path).exists():
        Path(path).touch()
        raise ConnectionError("away")
    return Number(value=0)


@flow
def job(sizes: list[int]) -> str:
    for size in sizes:
        hold_memory(size)
    return str(flow_run.id)


def test_a_stage_that_ran_and_one_from_the_cache(state):
    metrics = stage_metrics(run := job([300, 1, 1]))
    assert (metrics["runs/hold-memory"], metrics["cached/hold-memory"]) == (3, 1)
    assert metrics["seconds/hold-memory"] > 0
    assert metrics["cpu_seconds/hold-memory"] > 0
    large, small = sorted((m for m in measurements(run) if m.computed), key=lambda m: -m.peak_bytes)
    if Path("/proc/self/clear_refs").exists():
        assert large.peak_bytes - small.peak_bytes > 200e6  # the peak of each, not of the process so far
    again = stage_metrics(job([300]))
    assert again == {"runs/hold-memory": 1, "cached/hold-memory": 1}


def test_an_attempt_that_failed_counts_once(tmp_path):
    @flow
    def retried() -> str:
        fails_once(str(tmp_path / "tried"))
        return str(flow_run.id)

    assert stage_metrics(retried())["runs/fails"] == 1


def test_what_was_recorded_is_forgotten(state):
    run = job([2])
    assert measurements(run)
    forget(run)
    assert not list((state / ".prefect" / "measured").iterdir())
    assert stage_metrics(run) == {}


def test_stages_side_by_side_each_see_the_peak_of_their_time():
    found: dict[str, int] = {}
    begun, held = threading.Event(), threading.Event()

    def waits() -> None:
        with measuring._peak() as peak:
            begun.set()
            held.wait()
        found["waits"] = peak[0]

    thread = threading.Thread(target=waits)
    thread.start()
    begun.wait()
    with measuring._peak() as peak:
        assert np.ones(200 << 20, np.uint8).any()
    with measuring._peak() as after:
        pass
    held.set()
    thread.join()
    assert measuring.peak_of_process() >= found["waits"] >= peak[0] > 200 << 20
    if Path("/proc/self/clear_refs").exists():
        assert after[0] < peak[0] - (100 << 20)


def test_outside_of_a_run_nothing_is_written(state):
    with measured("alone"):
        pass
    assert not (state / ".prefect" / "measured").exists()
