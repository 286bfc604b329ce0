"""The lock of a stage: one holder at a time, freed by the kernel when its holder dies."""

import asyncio
import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cloudpickle  # type: ignore[import-untyped]
import pytest
from prefect.locking.protocol import LockManager

from tasks.locks import STAGE_LOCKS, FlockLockManager, exclusive

HOLDER = """
import sys
from tasks.locks import STAGE_LOCKS
assert STAGE_LOCKS.acquire_lock("merge-1.2", "the other process")
print("held", flush=True)
sys.stdin.read()
"""


def test_it_is_what_prefect_expects() -> None:
    assert isinstance(STAGE_LOCKS, LockManager)


def test_a_lock_is_held_by_one_and_free_after_its_release(state: Path) -> None:
    assert not STAGE_LOCKS.is_locked("key")
    assert STAGE_LOCKS.acquire_lock("key", "me")
    assert STAGE_LOCKS.acquire_lock("key", "me"), "taking a lock again that one holds does not wait for oneself"
    assert STAGE_LOCKS.is_lock_holder("key", "me")
    assert not STAGE_LOCKS.is_lock_holder("key", "you")
    assert STAGE_LOCKS.is_locked("key")
    assert not STAGE_LOCKS.acquire_lock("key", "you", acquire_timeout=0)
    assert not STAGE_LOCKS.wait_for_lock("key", timeout=0)
    assert STAGE_LOCKS.acquire_lock("key.2", "you", acquire_timeout=0), "keys that differ after a dot are two locks"
    with pytest.raises(ValueError, match="you does not hold the lock of key"):
        STAGE_LOCKS.release_lock("key", "you")
    STAGE_LOCKS.release_lock("key", "me")
    STAGE_LOCKS.release_lock("key.2", "you")
    assert not STAGE_LOCKS.is_locked("key")
    assert STAGE_LOCKS.wait_for_lock("key", timeout=0)
    with pytest.raises(ValueError, match="me does not hold"):
        STAGE_LOCKS.release_lock("key", "me")


def test_the_locks_lie_where_the_state_is(state: Path) -> None:
    STAGE_LOCKS.acquire_lock("key", "me")
    assert len(list((state / ".prefect" / "locks").iterdir())) == 1
    STAGE_LOCKS.release_lock("key", "me")


def test_coroutines_may_lock_too(state: Path) -> None:
    async def lock() -> tuple[bool, bool, bool]:
        taken = await STAGE_LOCKS.aacquire_lock("key", "me")
        refused = await STAGE_LOCKS.aacquire_lock("key", "you", acquire_timeout=0)
        STAGE_LOCKS.release_lock("key", "me")
        return taken, refused, await STAGE_LOCKS.await_for_lock("key", timeout=0)

    assert asyncio.run(lock()) == (True, False, True)


def test_threads_take_turns(state: Path) -> None:
    inside, most = [0], [0]

    def work(number: int) -> None:
        STAGE_LOCKS.acquire_lock("key", f"holder {number}")
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        inside[0] -= 1
        STAGE_LOCKS.release_lock("key", f"holder {number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(200)))
    assert most == [1]


def test_a_waiting_thread_goes_on_when_the_lock_is_released(state: Path) -> None:
    STAGE_LOCKS.acquire_lock("key", "me")
    waiting = threading.Thread(target=STAGE_LOCKS.acquire_lock, args=("key", "you"), daemon=True)
    waiting.start()
    STAGE_LOCKS.release_lock("key", "me")
    waiting.join(timeout=60)
    assert STAGE_LOCKS.is_lock_holder("key", "you")
    STAGE_LOCKS.release_lock("key", "you")


def test_a_lock_outlives_neither_sigkill_nor_its_process(state: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ)
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert STAGE_LOCKS.is_locked("merge-1.2")
    assert not STAGE_LOCKS.acquire_lock("merge-1.2", "me", acquire_timeout=0)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not STAGE_LOCKS.is_locked("merge-1.2")
    assert STAGE_LOCKS.acquire_lock("merge-1.2", "me", acquire_timeout=0)
    STAGE_LOCKS.release_lock("merge-1.2", "me")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_is_the_same_table(copied: object) -> None:
    assert copied(STAGE_LOCKS) is STAGE_LOCKS  # type: ignore[operator]


@pytest.mark.parametrize("library", [pickle, cloudpickle])
def test_a_pickle_names_the_table_of_the_process_that_reads_it(library: object) -> None:
    assert library.loads(library.dumps(STAGE_LOCKS)) is STAGE_LOCKS  # type: ignore[attr-defined]


def test_exclusive_frees_its_lock_after_an_exception(state: Path) -> None:
    path = state / "deep" / "file.lock"
    with pytest.raises(RuntimeError), exclusive(path):
        raise RuntimeError
    with exclusive(path):
        pass


def test_two_tables_in_one_process_exclude_each_other(state: Path) -> None:
    other = FlockLockManager()
    STAGE_LOCKS.acquire_lock("key", "me")
    assert not other.acquire_lock("key", "me too", acquire_timeout=0)
    STAGE_LOCKS.release_lock("key", "me")
