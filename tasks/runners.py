"""What a flow's stages run on: threads of this process, or the processes of a Dask or Ray cluster."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import wraps
from importlib.util import find_spec
from queue import Empty
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from prefect import Flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from mergeline.errors import InputError
from tasks.watching import watched

if TYPE_CHECKING:
    from mergeline.plan import Plan

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")
PACKAGES = {"dask": ("prefect_dask", "distributed"), "ray": ("prefect_ray", "ray")}


class PlanFlow(Flow[P, R]):
    """A flow of a plan, its first parameter: called, it runs on what the plan names (`runner`, `workers`).

    InputError where the packages of that runner are not installed.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:  # type: ignore[override]
        """Run it; a call where Prefect would take the flow's own runner."""
        plan: Plan = inspect.signature(self.fn).bind(*args, **kwargs).arguments["plan"]
        chosen = self.with_options(task_runner=task_runner(plan.runner, plan.workers))
        outcomes: list[R] = []
        chosen.fn = _remembering(self.fn, outcomes)
        chosen.validate_parameters = self.validate_parameters  # type: ignore[method-assign]  # by the types of self.fn
        try:
            with nullcontext() if plan.runner == "threads" else _one_server():
                return chosen(*args, **kwargs)
        except Exception as error:
            if not is_loss_of_server(error):
                raise
            forget_the_server()
            if outcomes:
                log.warning("Prefect's server was lost; the run is complete, but its page there does not say so")
                return outcomes[0]
            log.warning("Prefect's server was lost (%s); going on with one of this process's own", error)
        with _own_server():
            return chosen(*args, **kwargs)


def plan_flow(name: str) -> Callable[[Callable[P, R]], PlanFlow[P, R]]:
    """Make a flow of a function whose first parameter is `plan`; its runs are called like the plan."""
    return lambda function: PlanFlow(watched(function, name), name=name, flow_run_name="{plan.name}")


def task_runner(runner: str, workers: int | None) -> TaskRunner[Any]:
    """A runner of that kind. Dask and Ray start a cluster on this machine for the time of the flow, unless
    DASK_SCHEDULER_ADDRESS or RAY_ADDRESS names one that runs."""
    missing = [package for package in PACKAGES.get(runner, ()) if find_spec(package) is None]
    if missing:
        raise InputError(f"runner: {runner} needs the package {missing[0]}: pip install 'mergeline[{runner}]'")
    count = workers or os.cpu_count() or 1
    if runner == "dask":
        from prefect_dask import DaskTaskRunner

        if address := os.environ.get("DASK_SCHEDULER_ADDRESS"):
            return DaskTaskRunner(address=address)
        # no dashboard: its port may be taken
        options = {"n_workers": count, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
        return DaskTaskRunner(cluster_kwargs=options)
    if runner == "ray":
        from prefect_ray import RayTaskRunner  # type: ignore[import-untyped]

        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}  # what it says of its start, too
        if address := os.environ.get("RAY_ADDRESS"):
            return RayTaskRunner(address=address, init_kwargs=quiet)
        return RayTaskRunner(init_kwargs={"num_cpus": count, "include_dashboard": False} | quiet)
    return ThreadPoolTaskRunner(max_workers=workers) if workers else ThreadPoolTaskRunner()


def _remembering(function: Callable[P, R], outcomes: list[R]) -> Callable[P, R]:
    """The same function, whose outcome is not lost when Prefect cannot report it."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        outcomes.append(function(*args, **kwargs))
        return outcomes[-1]

    return run


def is_loss_of_server(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, says that Prefect's server cannot be reached."""
    from httpx import HTTPStatusError, TransportError

    if error is None or not PREFECT_API_URL.value():
        return False
    lost = isinstance(error, TransportError) or (
        isinstance(error, HTTPStatusError) and error.response.status_code >= 500
    )
    asked = getattr(error, "_request", None)  # `request` raises where there is none
    if lost and asked is not None and str(asked.url).startswith(str(PREFECT_API_URL.value())):
        return True
    return is_loss_of_server(error.__cause__ or error.__context__)


def forget_the_server() -> None:
    """Drop what Prefect's server was still to be told: at exit, every event and line would wait seconds for it."""
    from prefect._internal.concurrency.services import _QueueServiceBase

    services: dict[int, Any] = vars(_QueueServiceBase)["_instances"]  # Prefect has no public way
    for service in list(services.values()):
        with suppress(Empty):
            while True:
                service._queue.get_nowait()
        service._stop()  # who sends next starts another one, for the server of then


@contextmanager
def _one_server() -> Iterator[None]:
    """The Prefect server that this process uses, for the workers too: each would start one of its own."""
    if PREFECT_API_URL.value():
        yield
    else:
        with _own_server():
            yield


@contextmanager
def _own_server() -> Iterator[None]:
    """A Prefect server of this process."""
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    server.start()
    with temporary_settings({PREFECT_API_URL: server.api_url}):
        yield
