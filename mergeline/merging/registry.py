"""The merging methods by name. A method's signature is its schema: options, types and defaults are read from it.

Neither this module nor those of the methods import torch before a method runs, so that checking a plan costs nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from mergeline.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor

Granularity = Literal["model", "layer", "tensor"]
Evidence = Literal["fisher", "gram", "merged_gram"]
Models = tuple[int, int | None]

EVIDENCE: Mapping[Evidence, str] = {
    "fisher": "the diagonal Fisher information",
    "gram": "the Gram matrices of the layers' inputs",
    "merged_gram": "the Gram matrices of the layers' inputs in the merged model",
}
"""What each kind of evidence is, for people."""

REQUIRED = inspect.Parameter.empty
RESERVED = ("where", "statistics", "evidence")  # keywords of a kernel that the engine fills in
_METHODS: dict[str, Method] = {}
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Piece:
    """Where a chunk lies: tensor name, flat index of the chunk's first entry, shape of the whole tensor."""

    name: str
    start: int
    shape: tuple[int, ...]


def row_length(shape: tuple[int, ...]) -> int:
    """Entries of a row of a tensor taken as the matrix [shape[0], all else]; a vector or a scalar is one row."""
    return prod(shape[1:]) if len(shape) > 1 else prod(shape)


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
    """What the engine, the plan and the documentation know about a method; made by `@method`, which explains it."""

    name: str
    kernel: Callable[..., Tensor]
    needs_base: bool
    options: Mapping[str, Option]
    statistics: Callable[..., dict[str, Any]] | None
    granularity: Granularity
    evidence: Evidence | None
    whole_tensors: bool
    whole_rows: bool
    models: Models
    takes: frozenset[str]
    symmetric: bool
    idempotent: bool
    examples: Mapping[str, Any]

    @property
    def summary(self) -> str:
        """The first line of the kernel's docstring."""
        return (inspect.getdoc(self.kernel) or "").partition("\n")[0]

    @property
    def knows_groups(self) -> bool:
        """Whether its statistics are told if a group is the `whole` model: a small group may be treated otherwise."""
        return self.statistics is not None and "whole" in _keywords(self.statistics)

    @property
    def statistics_options(self) -> list[str]:
        """The options that its statistics depend on; the others may change without a new statistics pass."""
        return [name for name in _keywords(self.statistics) if name in self.options] if self.statistics else []

    def option_faults(self, options: Mapping[str, Any]) -> dict[str, str]:
        """One sentence for each option that is unknown, missing or has a wrong value."""
        faults = self.value_faults(options)
        for name, option in self.options.items():
            if name not in options and option.default is REQUIRED:
                faults[name] = f"method {self.name!r} needs the option {name!r}"
        return faults

    def value_faults(self, options: Mapping[str, Any]) -> dict[str, str]:
        """The same, but options may be missing: some of them are given for some tensors."""
        faults = {}
        for name, value in options.items():
            if name not in self.options:
                faults[name] = f"method {self.name!r} has no option {name!r}{nearest(name, self.options)}"
                continue
            try:
                self.options[name].check(value)
            except ValidationError as error:
                fault = error.errors()[0]["msg"]
                faults[name] = f"method {self.name!r}: option {name!r} is {value!r}: {fault}"
        return faults

    def validate_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options with their defaults filled in; InputError naming those that are unknown, missing or wrong."""
        if faults := self.option_faults(options):
            raise InputError("; ".join(faults.values()))
        return {
            name: option.check(options[name]) if name in options else option.default
            for name, option in self.options.items()
        }

    def check_models(self, count: int) -> None:
        """InputError where the method does not merge so many models."""
        least, most = self.models
        if count < least or (most is not None and count > most):
            wanted = str(least) if least == most else f"at least {least}" if most is None else f"{least} to {most}"
            raise InputError(f"method {self.name!r} merges {wanted} task models, not {count}.")

    def choose_granularity(self, granularity: str | None) -> Granularity:
        """The granularity asked for, or the method's own; InputError where it is unknown or means nothing."""
        if granularity is None:
            return self.granularity
        if granularity not in get_args(Granularity):
            raise InputError(
                f"granularity {granularity!r} does not exist{nearest(granularity, get_args(Granularity), listed=True)}"
            )
        if self.statistics is None:
            raise InputError(f"method {self.name!r} gathers no statistics, so it has no granularity; leave it out.")
        return granularity  # type: ignore[return-value]


def method(
    name: str,
    *,
    needs_base: bool,
    statistics: Callable[..., dict[str, Any]] | None = None,
    granularity: Granularity = "model",
    evidence: Evidence | None = None,
    whole_tensors: bool = False,
    whole_rows: bool = False,
    models: Models = (1, None),
    symmetric: bool = True,
    idempotent: bool = False,
    examples: Mapping[str, Any] | None = None,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a kernel `f(rows, *, option=default, ...) -> Tensor` under a name; the kernel itself is unchanged.

    The kernel: rows [n, c] float32 -> [c] float32, elementwise along the parameters; with `whole_tensors`
    [n, *shape] -> [*shape]; with `whole_rows` of whole rows of a tensor seen as the matrix [shape[0], all else] (a
    vector is one row). rows are task vectors (model - base) where `needs_base`, else the task models. They lie in
    memory that is used again: a kernel may overwrite them, and may return them.
    Keywords that it gets where it declares them: `where`, the Piece it works on; `statistics`; `evidence`.
    statistics: `f(chunks, size, *, some of the options[, whole]) -> dict` (JSON-able) of a group of tensors: chunks()
    iterates over its rows as [n, c] float32 pieces, each valid until the next is taken; size is their length together.
    granularity: which tensors are one group unless the user says otherwise.
    evidence: "fisher": one number per parameter, [n, c] float32 like the rows. "gram": the products of the inputs of a
    weight, [n, in, in] float32, or None for a tensor without one. "merged_gram": the same, of the inputs that the
    weight has in the merged model.
    models: the least and the most task models (None: no limit).
    What the law tests take from the declaration: symmetric: the order of the models changes no bit. idempotent: equal
    models merge to themselves, one model to itself, but for rounding. examples: values for options without a default.
    """

    def register(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if name in _METHODS:
            raise ValueError(f"two merging methods are called {name!r}")
        options = _keywords(kernel)
        takes = frozenset(key for key in RESERVED if options.pop(key, None))
        for key, declared in (("statistics", statistics), ("evidence", evidence)):
            if (key in takes) != (declared is not None):
                raise ValueError(f"merging method {name!r}: the keyword and the declaration of {key!r} go together")
        _METHODS[name] = Method(
            name,
            kernel,
            needs_base,
            options,
            statistics,
            granularity,
            evidence,
            whole_tensors,
            whole_rows,
            models,
            takes,
            symmetric,
            idempotent,
            examples or {},
        )
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
    """The keyword-only parameters of a function."""
    unimported = {"Tensor": object, "Piece": Piece}  # methods import these for the type checker only
    types = get_type_hints(function, localns=unimported, include_extras=True)
    parameters = inspect.signature(function).parameters.items()
    return {name: Option(types[name], p.default) for name, p in parameters if p.kind is p.KEYWORD_ONLY}
