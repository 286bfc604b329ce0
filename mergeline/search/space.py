"""What a search tries: a point of the space is a value for each coefficient, and a point is a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import floor
from typing import Any

from mergeline.comparison import aligns
from mergeline.errors import InputError
from mergeline.plan import Merge, Plan, Search

Point = dict[str, float]
"""Name of a coefficient ("scale", "scale.MODEL", "keep_ratio", "balance") -> its value."""


@dataclass(frozen=True)
class Real:
    """A coefficient between two numbers; step: the distance of the points of a grid."""

    low: float
    high: float
    step: float

    def grid(self) -> list[float]:
        """low, low + step, ... up to high."""
        count = floor((self.high - self.low) / self.step + 1e-9) + 1
        return [round(self.low + index * self.step, 12) for index in range(count)]

    def nearest(self, value: float) -> float:
        """The value, moved into the range where it lies outside."""
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class Choice:
    """A coefficient that takes one of a few values, ascending: each of them costs a pass over the models."""

    values: tuple[float, ...]

    def grid(self) -> list[float]:
        """All values."""
        return list(self.values)

    def nearest(self, value: float) -> float:
        """The closest of the values."""
        return min(self.values, key=lambda known: abs(known - value))


Space = dict[str, Real | Choice]


def search_space(plan: Plan, search: Search) -> Space:
    """The coefficients that are searched, in a fixed order. InputError where the plan has none of that kind."""
    check_searchable(plan.merge.method)
    space: Space = {}
    for name in ("scales", "scale", "keep_ratio", "balance"):
        if name not in search.over:
            continue
        if name in ("scales", "scale"):
            span = getattr(search, name)
            names = [f"scale.{model.name}" for model in plan.task_models] if name == "scales" else ["scale"]
            space |= {key: Real(span.low, span.high, span.step) for key in names}
        else:
            space[name] = Choice(tuple(sorted(set(getattr(search, name)))))
    if "balance" in space and (not aligns(plan) or (plan.align is not None and plan.align.space != "dual")):
        raise InputError("search.over: there is no balance to search: the plan aligns nothing in dual space")
    return space


def check_searchable(method: str) -> None:
    """InputError for a merging method whose coefficients cannot be searched."""
    if method != "pcb":
        raise InputError(f"merge.method: only coefficients of 'pcb' can be searched, not those of '{method}'")


def own_point(plan: Plan, space: Space) -> Point:
    """The values that the plan itself has, moved to the nearest that may be tried: where a search begins."""
    from mergeline.merging.registry import get

    known = get(plan.merge.method).options
    options = {name: plan.merge.options.get(name, known[name].default) for name in ("scale", "scales", "keep_ratio")}
    scales = options.pop("scales") or [1.0] * len(plan.task_models)
    own = options | {f"scale.{model.name}": scale for model, scale in zip(plan.task_models, scales, strict=False)}
    own["balance"] = plan.align.balance if plan.align else 0.0
    return {name: kind.nearest(float(own[name])) for name, kind in space.items()}


def overlay(plan: Plan, point: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """What a point says, as sections of a plan."""
    merge: dict[str, Any] = {name: point[name] for name in ("scale", "keep_ratio") if name in point}
    scales = [point[key] for model in plan.task_models if (key := f"scale.{model.name}") in point]
    if scales:
        merge["scales"] = scales
    found = {"merge": merge} if merge else {}
    if "balance" in point:
        found["align"] = {"balance": point["balance"]}
        if plan.align and plan.align.balance_search:
            found["align"]["balance_search"] = None
    return found


def plan_at(plan: Plan, point: Mapping[str, float]) -> Plan:
    """The plan with the values of a point in place of its own; what is not searched stays."""
    changes = overlay(plan, point)
    updates: dict[str, Any] = {}
    if "merge" in changes:
        updates["merge"] = Merge.model_validate(plan.merge.model_dump() | changes["merge"])
    if "align" in changes and plan.align:
        updates["align"] = plan.align.model_copy(update=changes["align"])
    return plan.model_copy(update=updates)


def settings(plan: Plan, point: Mapping[str, float], show: Callable[[Any], str] = repr) -> list[str]:
    """A point as arguments of `--set`: merge.scales=[0.9, 1.1]."""
    return [
        f"{section}.{name}={_yaml(value, show)}"
        for section, values in overlay(plan, point).items()
        for name, value in values.items()
    ]


def _yaml(value: Any, show: Callable[[Any], str]) -> str:
    if isinstance(value, list):
        return f"[{', '.join(show(item) for item in value)}]"
    return "null" if value is None else show(value)
