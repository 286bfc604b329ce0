"""A stage with the real Prefect: when it runs, when it does not, what it accepts."""

import json
import math
import sqlite3
import sys
import threading
import types
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
import torch
from prefect import Task, flow, unmapped
from pydantic import BaseModel
from sqlalchemy.exc import OperationalError

from mergeline.checkpoints.sources import TransientError
from mergeline.errors import InputError
from tasks import policy
from tasks.locks import FlockLockManager
from tasks.policy import fresh, is_transient, retry_after, stage
from tasks.store import ArtifactRef, put_json, read_json
from tests.prefect_fixtures import forget_sources

pytestmark = pytest.mark.usefixtures("prefect_server", "state")

calls: list[Any] = []


@pytest.fixture(autouse=True)
def no_calls_and_one_thread() -> Iterator[None]:
    calls.clear()
    yield
    torch.set_num_threads(1)


class Number(BaseModel):
    value: float


@stage("double")
def double(number: float, note: str = "") -> Number:
    calls.append(number)
    return Number(value=2 * number)


@stage("write-artifact")
def write_artifact(text: str) -> ArtifactRef:
    calls.append(text)
    return put_json({"text": text}, "text")


@stage("read-artifact")
def read_artifact(ref: ArtifactRef) -> Number:
    calls.append(ref.sha256)
    return Number(value=len(str(read_json(ref))))


def run(task: Task[..., Any], *args: Any, **kwargs: Any) -> tuple[str, Any]:
    """The name of the final state and the result."""
    state = task(*args, return_state=True, **kwargs)
    return state.name, state.result()


def records(state: Path) -> list[Path]:
    return list((state / ".prefect" / "results").iterdir())


# --- when it runs ----------------------------------------------------------------------------------------------------


def test_a_second_call_returns_the_record_and_does_not_run() -> None:
    assert run(double, 1.5) == ("Completed", Number(value=3.0))
    assert run(double, 1.5) == ("Cached", Number(value=3.0))
    assert run(double, number=1.5, note="") == ("Cached", Number(value=3.0))
    assert calls == [1.5]


def test_another_input_runs() -> None:
    assert [run(double, number)[0] for number in (1.5, 2.5, 1, 1.0, True)] == ["Completed"] * 5
    assert run(double, 1.5, note="said")[0] == "Completed"


def test_stages_with_the_same_input_do_not_share_a_record() -> None:
    @stage("treble")
    def treble(number: float, note: str = "") -> Number:
        return Number(value=3 * number)

    assert run(double, 1.5) == ("Completed", Number(value=3.0))
    assert run(treble, 1.5) == ("Completed", Number(value=4.5))


def test_an_artifact_counts_by_its_content() -> None:
    first = put_json({"a": 1}, "text", told="once")
    second = put_json({"a": 1}, "other kind", told="twice")
    assert run(read_artifact, first)[0] == "Completed"
    assert run(read_artifact, second)[0] == "Cached"
    assert run(read_artifact, put_json({"a": 2}, "text", told="once"))[0] == "Completed"


@pytest.mark.parametrize("damage", ["removed", "altered"])
def test_a_record_of_an_artifact_that_is_gone_or_altered_is_not_used(damage: str) -> None:
    name, ref = run(write_artifact, "seven")
    assert (name, run(write_artifact, "seven")) == ("Completed", ("Cached", ref))
    ref.path.unlink()
    if damage == "altered":
        ref.path.write_text('{"text": "eight"}')
    assert run(write_artifact, "seven") == ("Completed", ref)
    assert read_json(ref) == {"text": "seven"}
    assert run(write_artifact, "seven") == ("Cached", ref)
    assert calls == ["seven", "seven"]


@pytest.mark.parametrize(
    "tamper",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('\\"sha256\\"', '\\"sha257\\"'),
        lambda text: text.replace(json.loads(json.loads(text)["result"])["data"]["sha256"], "0" * 64),
    ],
)
def test_a_tampered_record_is_not_used(state: Path, tamper: Callable[[str], str]) -> None:
    _, ref = run(write_artifact, "seven")
    [record] = records(state)
    text = record.read_text()
    assert tamper(text) != text
    record.write_text(tamper(text))
    assert run(write_artifact, "seven") == ("Completed", ref)
    assert run(write_artifact, "seven") == ("Cached", ref)


def test_a_change_in_a_module_that_the_stage_uses_runs_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "toybox"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "work.py").write_text(
        "from tasks.policy import stage\nfrom tasks.store import ArtifactRef, put_json\n\n\n"
        "@stage('work')\ndef work(x: int) -> ArtifactRef:\n"
        "    from toybox.formula import f\n\n    return put_json(f(x), 'number')\n"
    )

    def in_a_new_process(formula: str) -> tuple[str, object]:
        (package / "formula.py").write_text(formula)
        for name in [name for name in sys.modules if name.partition(".")[0] == "toybox"]:
            del sys.modules[name]
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        forget_sources()
        from toybox.work import work  # type: ignore[import-not-found]

        name, ref = run(work, 3)
        return name, read_json(ref)

    assert in_a_new_process("def f(x): return 2 * x") == ("Completed", 6)
    assert in_a_new_process("def f(x): return 2 * x  # twice") == ("Cached", 6)
    assert in_a_new_process("def f(x): return 5 * x") == ("Completed", 15)
    assert in_a_new_process("def f(x): return 2 * x") == ("Cached", 6)


def test_fresh_ignores_a_record_and_replaces_it() -> None:
    run(double, 1.5)
    with fresh():
        assert run(double, 1.5)[0] == "Completed"
    assert run(double, 1.5)[0] == "Cached"
    assert calls == [1.5, 1.5]


def test_fresh_reaches_the_threads_of_a_flow() -> None:
    @flow
    def two() -> list[str | None]:
        return [future.state.name for future in double.map([1.5, 2.5]) if future.wait() is None]

    two()
    with fresh():
        assert two() == ["Completed", "Completed"]
    assert two() == ["Cached", "Cached"]


def test_a_failure_is_not_recorded(state: Path) -> None:
    @stage("fail")
    def fail(x: int) -> Number:
        calls.append(x)
        raise RuntimeError("no")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="no"):
            fail(1)
    assert calls == [1, 1]


def test_records_and_artifacts_lie_in_the_state_of_the_moment(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(write_artifact, "seven")
    assert len(records(state)) == 1
    monkeypatch.setenv("MERGELINE_STATE", str(tmp_path / "other"))
    assert run(write_artifact, "seven")[0] == "Completed"
    assert len(records(tmp_path / "other")) == 1


def test_two_at_the_same_time_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    both_are_here, entered = threading.Event(), []
    acquire = FlockLockManager.acquire_lock

    def count(self: FlockLockManager, key: str, *args: Any, **kwargs: Any) -> bool:
        entered.append(key)
        if len(entered) == 2:
            both_are_here.set()
        return acquire(self, key, *args, **kwargs)

    @stage("meet")
    def meet(x: int) -> Number:
        assert both_are_here.wait(timeout=120)
        calls.append(x)
        return Number(value=x)

    @flow
    def two() -> list[str]:
        futures = [meet.submit(7), meet.submit(7)]
        return sorted(str(future.state.name) for future in futures if future.wait() is None)

    monkeypatch.setattr(FlockLockManager, "acquire_lock", count)
    assert two() == ["Cached", "Completed"]
    assert calls == [7]
    assert len(set(entered)) == 1


def test_a_stage_maps_over_artifacts_with_the_rest_held_fixed() -> None:
    @stage("scale")
    def scale(ref: ArtifactRef, factor: Number) -> Number:
        return Number(value=factor.value * len(str(read_json(ref))))

    @flow
    def scales() -> list[float]:
        refs = [put_json(text, "text") for text in ("a", "bb", "ccc")]
        return [future.result().value for future in scale.map(refs, unmapped(Number(value=2)))]

    assert scales() == [2.0, 4.0, 6.0]
    assert scales() == [2.0, 4.0, 6.0]


def test_stages_compute_on_one_thread() -> None:
    @stage("count-threads")
    def count_threads(x: int) -> Number:
        return Number(value=torch.get_num_threads())

    torch.set_num_threads(2)
    assert count_threads(1).value == 1


# --- retries ---------------------------------------------------------------------------------------------------------


def without_delay(task: Task[..., Any]) -> Task[..., Any]:
    return task.with_options(retry_delay_seconds=0, retry_jitter_factor=0.0)


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), TransientError("503"), TimeoutError("late")])
def test_a_transient_failure_is_tried_again(error: Exception) -> None:
    @stage("try-again", retries=2)
    def try_again(x: int) -> Number:
        calls.append(x)
        if len(calls) < 3:
            raise error
        return Number(value=len(calls))

    assert try_again.retry_delay_seconds == [1, 2]
    assert run(without_delay(try_again), 1) == ("Completed", Number(value=3))
    assert run(try_again, 1) == ("Cached", Number(value=3))


@pytest.mark.parametrize("error", [ValueError("bad"), FileNotFoundError("gone"), PermissionError("no")])
def test_a_permanent_failure_is_not(error: Exception) -> None:
    @stage("give-up", retries=3)
    def give_up(x: int) -> Number:
        calls.append(x)
        raise error

    with pytest.raises(type(error)):
        run(without_delay(give_up), 1)
    assert calls == [1]


def test_retries_end() -> None:
    @stage("never", retries=2)
    def never(x: int) -> Number:
        calls.append(x)
        raise ConnectionError("down")

    with pytest.raises(ConnectionError):
        run(without_delay(never), 1)
    assert calls == [1, 1, 1]


@pytest.mark.parametrize(("asked", "waits", "attempts"), [(7.0, [7.0], 2), (policy.LONGEST_WAIT + 1, [], 1)])
def test_a_server_that_asks_to_wait_is_obeyed_within_reason(
    monkeypatch: pytest.MonkeyPatch, asked: float, waits: list[float], attempts: int
) -> None:
    class BusyError(ConnectionError):
        retry_after = asked

    @stage("ask", retries=1)
    def ask(x: int) -> Number:
        calls.append(x)
        raise BusyError

    waited: list[float] = []
    monkeypatch.setattr(policy, "time", types.SimpleNamespace(sleep=waited.append))
    with pytest.raises(BusyError):
        run(without_delay(ask), 1)
    assert (waited, len(calls)) == (waits, attempts)


def http_error(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(response=response)


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("said", ["3", "date", "soon", None])
def test_how_long_a_server_asks_to_wait(said: str | None) -> None:
    error = http_error(429)
    if said == "date":
        error.response.headers["Retry-After"] = format_datetime(datetime.now(UTC) + timedelta(hours=1))
        assert 3000 < retry_after(error) <= 3600
        return
    if said:
        error.response.headers["Retry-After"] = said
    assert retry_after(error) == (3.0 if said == "3" else 0.0)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (requests.ConnectionError(), True),
        (requests.ConnectTimeout(), True),
        (requests.ReadTimeout(), True),
        (httpx.ConnectError(""), True),
        (httpx.ReadTimeout(""), True),
        (httpx.InvalidURL(""), False),
        (http_error(503), True),
        (http_error(429), True),
        (http_error(404), False),
        (http_error(403), False),
        (requests.exceptions.ChunkedEncodingError(), True),
        (sqlite3.OperationalError("database is locked"), True),
        (sqlite3.OperationalError("no such table"), False),
        (OperationalError("select", {}, sqlite3.OperationalError("database is locked")), True),
        (raised_from(RuntimeError("copying failed"), ConnectionResetError()), True),
        (raised_from(RuntimeError("copying failed"), http_error(404)), False),
        (raised_from(InputError("the digest is another one"), ConnectionResetError()), False),
        (ValueError("NaN in conv1.weight"), False),
        (OSError("disk full"), False),
        (KeyError("x"), False),
    ],
)
def test_what_is_transient(error: Exception, expected: bool) -> None:
    assert is_transient(error) is expected


# --- what it refuses -------------------------------------------------------------------------------------------------


def test_a_stage_with_a_refused_input_fails_and_does_not_run() -> None:
    @stage("take-anything")
    def take_anything(value: Any) -> Number:
        calls.append(value)
        return Number(value=0)

    with pytest.raises(TypeError, match="is no input for a stage"):
        take_anything({1, 2})
    with pytest.raises(ValueError, match="NaN"):
        take_anything(math.nan)
    assert calls == []


def test_a_broken_promise_is_an_error() -> None:
    @stage("lie")
    def lie(x: int) -> Number:
        return {"value": x}  # type: ignore[return-value]

    with pytest.raises(TypeError, match="stage lie returned dict, it promises Number"):
        lie(1)
