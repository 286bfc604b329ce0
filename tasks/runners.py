"""What a flow's stages run on: threads of this process, or the processes of a Dask or Ray cluster."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from prefect import Flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from mergeline.errors import InputError
from tasks.watching import watched

if TYPE_CHECKING:
    from mergeline.plan import Plan

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
        with nullcontext() if plan.runner == "threads" else _one_server():
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


@contextmanager
def _one_server() -> Iterator[None]:
    """The Prefect server that this process uses, for the workers too: each would start one of its own."""
    if PREFECT_API_URL.value():
        yield
        return
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    server.start()
    with temporary_settings({PREFECT_API_URL: server.api_url}):
        yield
