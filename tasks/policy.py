"""What makes a function a stage: how it is cached, locked, retried. Written once, here.

A stage runs again when its code changed (`tasks.code_version`), when its inputs changed (by content), or when the
artifact that it once returned is gone or was altered. Otherwise its recorded result is returned: state "Cached".
"""

import hashlib
import inspect
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, get_type_hints

from prefect import Task, task
from prefect.cache_policies import NO_CACHE, CachePolicy
from prefect.client.schemas import TaskRun
from prefect.context import TaskRunContext
from prefect.results import get_result_store
from prefect.settings import PREFECT_TASKS_REFRESH_CACHE, temporary_settings
from prefect.states import State
from prefect.tasks import exponential_backoff
from prefect.transactions import IsolationLevel
from pydantic import BaseModel

from mergeline.errors import InputError
from tasks._env import state_directory, use_one_thread
from tasks.code_version import code_version
from tasks.locks import STAGE_LOCKS
from tasks.logs import told
from tasks.measuring import asked, measured
from tasks.store import ArtifactRef
from tasks.usage import undisturbed

P = ParamSpec("P")
R = TypeVar("R", bound=BaseModel)
T = TypeVar("T")

log = logging.getLogger(__name__)

LONGEST_WAIT = 300.0  # seconds that a server may ask us to wait before a retry


def stage(
    name: str, *, retries: int = 0, timeout_seconds: float | None = None, tags: Iterable[str] = ()
) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a stage of a function that takes plain data, pydantic models and refs, and returns one pydantic model.

    name: lower case, digits and hyphens; part of the cache key. retries: how often a transient failure (connection,
    timeout, HTTP 429 or 5xx) is tried again; other failures never are. Raises TypeError where the function does not
    promise a pydantic model from an importable module, which is what a record on disk can be read back as.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"stage name {name!r}: use lower case letters, digits and single hyphens")

    def decorate(function: Callable[P, R]) -> Task[P, R]:
        returns = _result_type(function)
        signature = inspect.signature(function)

        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            # Prefect logs an error in the cache key and runs uncached. Here it stops the stage.
            cache_key(name, function, signature.bind(*args, **kwargs).arguments)
            use_one_thread()
            with told("stage", name), measured(name):
                result = function(*args, **kwargs)
            if not isinstance(result, returns):
                raise TypeError(f"stage {name} returned {type(result).__name__}, it promises {returns.__name__}")
            return result

        return _Stage(
            run,
            name=name,
            tags=tags,
            cache_policy=_StagePolicy(isolation_level=IsolationLevel.SERIALIZABLE, lock_manager=STAGE_LOCKS),
            persist_result=True,
            result_serializer="json",
            cache_result_in_memory=False,  # the record on disk is the one that was checked
            timeout_seconds=timeout_seconds,
            **_retried(retries),
        )

    return decorate


def action(name: str, *, retries: int) -> Callable[[Callable[P, T]], Task[P, T]]:
    """Make a task of a function that changes or asks something outside: never cached, tried again like a stage."""
    return task(name=name, cache_policy=NO_CACHE, persist_result=False, **_retried(retries))


def _retried(retries: int) -> dict[str, Any]:
    """When a task is tried again: after transient failures, later and later, not all at the same moment."""
    return {
        "retries": retries,
        "retry_delay_seconds": exponential_backoff(backoff_factor=1) if retries else None,
        "retry_jitter_factor": 0.3 if retries else None,
        "retry_condition_fn": worth_a_retry,
    }


@contextmanager
def fresh() -> Iterator[None]:
    """Within this block stages ignore what is cached, run, and replace their records (as MERGELINE_FRESH=1 does)."""
    with temporary_settings({PREFECT_TASKS_REFRESH_CACHE: True}):
        yield


@contextmanager
def recomputing(wanted: bool) -> Iterator[None]:
    """`fresh`, where it is wanted."""
    with fresh() if wanted else nullcontext():
        yield


def at_hand(called: Task[P, R], *args: P.args, **kwargs: P.kwargs) -> bool:
    """Whether this call of a stage would be answered from the cache, for work that only prepares it; never waits."""
    if PREFECT_TASKS_REFRESH_CACHE.value():
        return False
    try:
        store: Any = get_result_store().update_for_task(called)
        return store.model_copy(update={"lock_manager": None}).read(stage_key(called, *args, **kwargs)) is not None
    except ValueError:  # never recorded, or its artifact is gone
        return False


def stage_key(called: Task[P, R], *args: P.args, **kwargs: P.kwargs) -> str:
    """The cache key of a call of a stage."""
    function = inspect.unwrap(called.fn)
    return cache_key(called.name, function, inspect.signature(function).bind(*args, **kwargs).arguments)


def records_directory() -> Path:
    """Where the results of stages are recorded, each under its cache key."""
    return state_directory() / ".prefect" / "results"


class _Stage(Task[P, R]):
    """A task whose records lie where MERGELINE_STATE says when it runs, not when it was defined."""

    @property
    def result_storage(self) -> Path:  # a Path: Prefect takes a str for the name of a storage block
        return records_directory()

    @result_storage.setter
    def result_storage(self, value: object) -> None:
        pass


def _result_type(function: Callable[..., Any]) -> type[BaseModel]:
    returns = get_type_hints(function).get("return")
    if not (isinstance(returns, type) and issubclass(returns, BaseModel)):
        raise TypeError(f"{function.__qualname__}: a stage returns one pydantic model or ArtifactRef, not {returns}")
    if "<locals>" in returns.__qualname__ or returns.__module__ == "__main__":
        raise TypeError(f"{function.__qualname__}: {returns.__qualname__} must be importable to be read from a record")
    return returns


# --- cache keys ------------------------------------------------------------------------------------------------------


@dataclass
class _StagePolicy(CachePolicy):
    def compute_key(
        self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str:
        asked(task_ctx.task.name)
        key = cache_key(task_ctx.task.name, inspect.unwrap(task_ctx.task.fn), inputs)
        with undisturbed(), suppress(FileNotFoundError):
            os.utime(records_directory() / key)  # a hit counts as use
        return key


def cache_key(name: str, function: Callable[..., Any], inputs: Mapping[str, Any]) -> str:
    """Name of the stage, version of the code it reaches, and its inputs by content (defaults included)."""
    call = inspect.signature(function).bind(**inputs)
    call.apply_defaults()
    parts = [
        f"{function.__module__}.{function.__qualname__}",
        code_version(function.__module__),
        {parameter: canonical(value) for parameter, value in call.arguments.items()},
    ]
    return f"{name}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}"


def canonical(value: Any) -> Any:
    """The one JSON form of a stage's input: equal content, equal form, in every process.

    An artifact counts as its digest, a model as its type and fields; 1, 1.0 and True differ; the order of a mapping
    counts. TypeError for anything whose content has no such form (a tensor, a set, a generator, a path, a lock: pass an
    artifact or plain data), ValueError for NaN, which does not equal itself.
    """
    match value:
        case float() if math.isnan(value):
            raise ValueError("NaN cannot be an input of a stage: it equals nothing, not even itself")
        case None | bool() | int() | float() | str():
            return value
        case ArtifactRef():
            return {"artifact": value.identity}
        case BaseModel():
            fields = {name: getattr(value, name) for name in type(value).model_fields} | (value.model_extra or {})
            return {"model": _type_name(value), "fields": canonical(fields)}
        case list() | tuple():
            return [canonical(item) for item in value]
        case dict() if all(isinstance(key, str) for key in value):
            return {"mapping": [[key, canonical(item)] for key, item in value.items()]}
    raise TypeError(f"{_type_name(value)} is no input for a stage: pass an artifact, a pydantic model or plain data")


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


# --- retries ---------------------------------------------------------------------------------------------------------


# By name, so that nothing is imported to ask. The built-in ConnectionError and TimeoutError count, too.
_TRANSIENT = {
    *("requests.ConnectionError", "requests.Timeout", "requests.ChunkedEncodingError"),
    *("httpx.TransportError", "urllib3.ProtocolError", "urllib3.MaxRetryError"),
    *("aiohttp.ClientConnectionError", "aiohttp.ClientPayloadError"),
    *("botocore.HTTPClientError", "botocore.ConnectionError"),
}


def is_transient(error: BaseException) -> bool:
    """Might the same call succeed in a moment? True for lost connections, timeouts, HTTP 429 or 5xx, a locked database.

    What the error was raised from counts where it says nothing itself; an InputError says that the input is at fault.
    """
    if isinstance(error, InputError):
        return False
    status = _http_status(error)
    if status is not None:
        return status == 429 or status >= 500
    names = {f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(error).__mro__}
    if isinstance(error, ConnectionError | TimeoutError) or not names.isdisjoint(_TRANSIENT):
        return True
    if type(error).__name__ == "OperationalError":  # of sqlite3, or of SQLAlchemy around it
        return "database is locked" in str(error) or "database table is locked" in str(error)
    return error.__cause__ is not None and is_transient(error.__cause__)


def _http_status(error: BaseException) -> int | None:
    """What the server answered; some libraries keep that in the error itself."""
    response = getattr(error, "response", None)
    found = [getattr(response, "status_code", None), getattr(error, "status", None)]
    if isinstance(response, Mapping):  # of botocore
        found.append(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    return next((status for status in found if isinstance(status, int)), None)


def retry_after(error: BaseException) -> float:
    """Seconds that the server asks to wait before the next attempt; 0 where it does not."""
    response = getattr(error, "response", None)
    headers = getattr(response, "headers", None) or getattr(error, "headers", None) or {}
    said = getattr(error, "retry_after", None) or headers.get("Retry-After")
    try:
        return max(0.0, float(said or 0.0))
    except ValueError:  # a date
        with suppress(TypeError, ValueError):
            return max(0.0, parsedate_to_datetime(str(said)).timestamp() - time.time())
        return 0.0


def patiently(call: Callable[[], T], what: str, delays: Iterable[float] = (1, 5, 30)) -> T:
    """What a call returns that is made again after transient failures; for what is no stage, and needs no Prefect.

    what: its name in a warning. delays: seconds before each further attempt; a server that asks for a longer wait gets
    it, up to LONGEST_WAIT. The last failure is raised as it is.
    """
    for delay in delays:
        try:
            return call()
        except Exception as error:
            wait = max(delay, retry_after(error))
            if not is_transient(error) or wait > LONGEST_WAIT:
                raise
            log.warning("%s failed and is tried again in %g s: %s: %s", what, wait, type(error).__name__, error)
            time.sleep(wait)
    return call()


def worth_a_retry(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Prefect asks this between two attempts; a wait that the server asked for (`retry_after`) is made here."""
    error = state.data
    if not isinstance(error, Exception) or not is_transient(error):
        return False
    wait = retry_after(error)
    if wait > LONGEST_WAIT:
        return False
    time.sleep(wait)
    return True
