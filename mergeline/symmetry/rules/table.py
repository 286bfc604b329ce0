"""The table of operation rules, and what a rule sees of the operation that it interprets.

A rule takes a `Call` and those arguments of the operation, by the names of its schema, that matter to symmetry (the
first argument, `self` or `input` in schemas, is `x`); tensors come as `AbstractTensor`. It returns the abstract result
(a tuple for several outputs), built from the primitives, and raises `UnsupportedError` for cases that it does not know.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mergeline.symmetry.contraction import Record
from mergeline.symmetry.domains import Domains
from mergeline.symmetry.labels import (
    CONSTANT,
    AbstractTensor,
    Label,
    Level,
    UnsupportedError,
    fresh_level,
    fresh_levels,
)

STACKED_LIMIT = 512
"""Longest leading axis for which every index gets its own permutations of the other axes."""


@dataclass(frozen=True)
class Call:
    """One operation of the trace.

    name: the operation without namespace and overload. node: where it stands in the model. shapes: of its outputs
    (None for outputs that are no tensors). used: which of several outputs are read. masks: which of the tensors in
    the argument `indices` are truth values.
    """

    name: str
    node: str
    shapes: tuple[tuple[int, ...] | None, ...]
    used: frozenset[int]
    domains: Domains
    record: Record
    masks: frozenset[int] = frozenset()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        shape = self.shapes[0]
        assert shape is not None
        return shape

    def first(self, result: AbstractTensor) -> AbstractTensor | tuple[AbstractTensor | None, ...]:
        """The outputs of an operation of which only the first is understood."""
        if self.used - {0}:
            raise UnsupportedError("an output other than the first is used")
        return result if len(self.shapes) == 1 else (result, *([None] * (len(self.shapes) - 1)))


class Parameter:
    """A parameter (or float buffer) that is not labelled yet: what reads it first knows how general it may be."""

    def __init__(self, domains: Domains, name: str, shape: Sequence[int]) -> None:
        self.domains = domains
        self.name = name
        self.shape = tuple(shape)
        self.tensor: AbstractTensor | None = None

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def labelled(self, groups: int | None = None) -> AbstractTensor:
        """The parameter with the most general labels, the same ones on every call.

        groups: for the weight of a convolution, in whose groups the input channels may be permuted differently.
        Otherwise each matrix of a stack (experts, heads) may be permuted on its own.
        """
        if self.tensor is None:
            labels = tuple(self._label(axis, groups) for axis in range(self.ndim))
            sources = tuple(frozenset({(self.name, axis)}) for axis in range(self.ndim))
            self.tensor = AbstractTensor(self.domains, self.shape, labels, sources)
        return self.tensor

    def _label(self, axis: int, groups: int | None) -> Label:
        n, first = self.shape[axis], self.shape[0]
        if n == 1:
            return CONSTANT
        if axis == 1 and groups is not None and groups > 1:
            by_group = fresh_levels(self.domains, n, 1, 0, groups, self.ndim)
            return (Level(by_group.domain.repeat(first // groups, 0), by_group.slot.repeat(first // groups, 0)),)
        if axis >= 1 and groups is None and self.ndim >= 3 and 1 < first <= STACKED_LIMIT:
            return (fresh_levels(self.domains, n, axis, 0, first, self.ndim),)
        return (fresh_level(self.domains, n, axis, self.ndim),)


def labelled(x: AbstractTensor | Parameter, groups: int | None = None) -> AbstractTensor:
    """An operand with labels."""
    return x.labelled(groups) if isinstance(x, Parameter) else x


F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Rule:
    """A rule and the arguments that it knows.

    Other arguments must not be tensors, unless the rule takes `**_`: then no operand matters. `lazy` rules get
    parameters unlabelled.
    """

    function: Callable[..., Any]
    known: frozenset[str]
    required: frozenset[str]
    ignores_others: bool
    lazy: bool

    @staticmethod
    def of(function: Callable[..., Any], lazy: bool = False) -> Rule:
        """The rule of a function, which takes the call and then arguments by the names of the schema."""
        _, *parameters = inspect.signature(function).parameters.values()
        named = [p for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
        return Rule(
            function,
            frozenset(p.name for p in named),
            frozenset(p.name for p in named if p.default is inspect.Parameter.empty),
            len(named) < len(parameters),
            lazy,
        )

    def __call__(self, call: Call, arguments: Mapping[str, Any]) -> Any:
        """Interpret the operation. Raises UnsupportedError for a form of it that the rule was not written for."""
        if not self.required <= arguments.keys():
            raise UnsupportedError(f"a form of it without {', '.join(sorted(self.required - arguments.keys()))}")
        for name, value in arguments.items():
            if name not in self.known and not self.ignores_others and tensors_in(value):
                raise UnsupportedError(f"a form of it with the argument {name}")
        return self.function(call, **{name: value for name, value in arguments.items() if name in self.known})


def tensors_in(value: object) -> list[AbstractTensor | Parameter]:
    """All abstract tensors in nested arguments."""
    if isinstance(value, AbstractTensor | Parameter):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [x for item in value for x in tensors_in(item)] if isinstance(value, list | tuple) else []


_RULES: dict[str, Rule] = {}


def rule(*names: str, lazy: bool = False) -> Callable[[F], F]:
    """Register a rule for operations: `softmax` for `aten::softmax`, with the namespace for others (`my::op`)."""

    def register(function: F) -> F:
        for name in names:
            assert name not in _RULES, f"two rules for {name}"
            _RULES[name] = Rule.of(function, lazy)
        return function

    return register


def find_rule(name: str) -> Rule | None:
    """The rule for an operation, if there is one; an in-place operation is interpreted like its functional form."""
    return _RULES.get(name) or (_RULES.get(name[:-1]) if name.endswith("_") else None)


def rule_names() -> list[str]:
    """All operations with a rule, sorted."""
    return sorted(_RULES)
