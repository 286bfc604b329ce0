"""The merging methods by name. A method's signature is its schema: options, types and defaults are read from it.

Neither this module nor those of the methods import torch before a method runs, so that checking a plan costs nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from mergeline.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor

REQUIRED = inspect.Parameter.empty
_METHODS: dict[str, Method] = {}
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Option:
    """One keyword of a kernel. annotation: any type that pydantic checks. default: REQUIRED where there is none."""

    annotation: Any
    default: Any

    def check(self, value: Any) -> Any:
        """The value, checked. Tensors, arrays and their scalars become plain numbers: options stay JSON-able."""
        plain = value.tolist() if hasattr(value, "tolist") else value
        return TypeAdapter(self.annotation, config=_STRICT).validate_python(plain)


@dataclass(frozen=True)
class Method:
    """What the engine, the plan and the documentation know about a method; made by `@method`.

    kernel: [n, c] float32 -> [c] float32, elementwise along the parameters. needs_base: the rows are task vectors
    (model - base), otherwise the task models themselves. statistics: None, or a function that sees all rows first.
    """

    name: str
    kernel: Callable[..., Tensor]
    needs_base: bool
    options: Mapping[str, Option]
    statistics: Callable[..., dict[str, Any]] | None

    @property
    def summary(self) -> str:
        """The first line of the kernel's docstring."""
        return (inspect.getdoc(self.kernel) or "").partition("\n")[0]

    @property
    def statistics_options(self) -> list[str]:
        """The options that its statistics depend on; the others may change without a new statistics pass."""
        return [name for name in _keywords(self.statistics) if name in self.options] if self.statistics else []

    def option_faults(self, options: Mapping[str, Any]) -> dict[str, str]:
        """One sentence for each option that is unknown, missing or has a wrong value."""
        unknown = [name for name in options if name not in self.options]
        faults = {name: f"method {self.name!r} has no option {name!r}{nearest(name, self.options)}" for name in unknown}
        for name, option in self.options.items():
            if name not in options and option.default is REQUIRED:
                faults[name] = f"method {self.name!r} needs the option {name!r}"
            elif name in options:
                try:
                    option.check(options[name])
                except ValidationError as error:
                    fault = error.errors()[0]["msg"]
                    faults[name] = f"method {self.name!r}: option {name!r} is {options[name]!r}: {fault}"
        return faults

    def validate_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options with their defaults filled in; InputError naming those that are unknown, missing or wrong."""
        if faults := self.option_faults(options):
            raise InputError("; ".join(faults.values()))
        return {
            name: option.check(options[name]) if name in options else option.default
            for name, option in self.options.items()
        }


def method(
    name: str, *, needs_base: bool, statistics: Callable[..., dict[str, Any]] | None = None
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a kernel `f(rows, *, option=default, ...) -> Tensor` under a name; the kernel itself is unchanged.

    statistics: `f(chunks, size, *, some of the options) -> dict` (JSON-able): chunks() iterates over all rows as
    [n, c] float32, size is their length. The kernel then receives the result as the keyword `statistics`.
    """

    def register(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if name in _METHODS:
            raise ValueError(f"two merging methods are called {name!r}")
        options = _keywords(kernel)
        if statistics:
            del options["statistics"]
        _METHODS[name] = Method(name, kernel, needs_base, options, statistics)
        return kernel

    return register


def names(needs_base: bool | None = None) -> list[str]:
    """The registered methods, sorted; only those that need a base, or need none, where `needs_base` says so."""
    return sorted(name for name, entry in _METHODS.items() if needs_base in (None, entry.needs_base))


def get(name: str) -> Method:
    """The method of that name; InputError with the nearest name."""
    if name not in _METHODS:
        raise InputError(f"merging method {name!r} does not exist{nearest(name, names(), listed=True)}")
    return _METHODS[name]


def _keywords(function: Callable[..., Any]) -> dict[str, Option]:
    """The keyword-only parameters of a function; only their annotations need to be there when it is registered."""
    parameters = inspect.signature(function).parameters.items()
    options = {name: p for name, p in parameters if p.kind is p.KEYWORD_ONLY}
    return {name: Option(_evaluated(p.annotation, function), p.default) for name, p in options.items()}


def _evaluated(annotation: Any, function: Callable[..., Any]) -> Any:
    return eval(annotation, function.__globals__) if isinstance(annotation, str) else annotation
