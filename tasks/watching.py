"""Every run of a plan is told about: its start and end in the log, its end to the webhook of the plan."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, get_type_hints

from tasks.logs import tell, told
from tasks.notify import notify

if TYPE_CHECKING:
    from mergeline.plan import Plan

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def failures_told(plan: Plan, what: str) -> Iterator[None]:
    """Tell the webhook of a plan where the block fails."""
    try:
        yield
    except Exception as error:
        notify(plan.notify, "failure", {"plan": plan.name, "flow": what, "error": f"{type(error).__name__}: {error}"})
        raise


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

    # Prefect reads types from the function that it is given: names would not be found in this module
    watched_function.__annotations__ = get_type_hints(function)
    watched_function.__signature__ = inspect.signature(function, eval_str=True)  # type: ignore[attr-defined]
    return watched_function


def _flow_run() -> str | None:
    from prefect.runtime import flow_run

    return flow_run.id
