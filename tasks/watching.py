"""Every run of a plan is told about: its start and end in the log, its end to the webhook of the plan."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from tasks.logs import tell, told
from tasks.notify import notify

if TYPE_CHECKING:
    from mergeline.plan import Plan

P = ParamSpec("P")
R = TypeVar("R")


def watched(function: Callable[P, R], name: str) -> Callable[P, R]:
    """The function of a flow, whose parameter `plan` says whom to tell."""

    @wraps(function)
    def watched_function(*args: P.args, **kwargs: P.kwargs) -> R:
        plan: Plan = inspect.signature(function).bind(*args, **kwargs).arguments["plan"]
        about = {"plan": plan.name, "flow": name, "flow_run": _flow_run()}
        try:
            with told("run", plan.name):
                result = function(*args, **kwargs)
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):
                notify(plan.notify, "failure", about | {"error": f"{type(error).__name__}: {error}"})
            raise
        facts: dict[str, Any] = getattr(result, "facts", {})
        tell("run summary", name=plan.name, **facts)
        notify(plan.notify, "success", about | facts)
        return result

    return watched_function


def _flow_run() -> str | None:
    from prefect.runtime import flow_run

    return flow_run.id
