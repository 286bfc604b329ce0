"""The value of a parameter for one tensor, as mergekit finds it: by filters, and by gradients over the layers.

A scalar holds everywhere. A list of numbers is a gradient: its values are spread evenly over the layers of a slice and
interpolated. A list of {filter, value}: the first whose filter is part of the tensor's name counts; one without a
filter, or with '*', fits every name. A level that has no value for a tensor leaves it to the next one: the model's (or
source's) parameters, the slice's, those of the whole merge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mergeline.errors import nearest
from mergeline.mergekit.document import Located, NoEquivalentError

Parameters = Mapping[str, Located]
Number = float | bool


@dataclass(frozen=True)
class Value:
    """What a parameter is for a tensor, and the line that says so (that of the merge method where a default holds)."""

    value: Number
    line: int


@dataclass(frozen=True)
class Slice:
    """Layers that are merged alike: parameters of each source by its place, and of the slice itself."""

    start: int
    stop: int | None  # None: to the last layer, however many there are
    sources: Sequence[Parameters]
    own: Parameters


def setting(given: Located, name: str, t: float) -> Value | None:
    """The value of one parameter at one level, None where no filter fits.

    name: of the tensor. t: where its layer lies in the slice, 0 (first) to 1.
    """
    if not isinstance(given.value, list):
        return Value(_number(given), given.line)
    items = given.items("a parameter")
    conditions = [item for item in items if isinstance(item.value, dict)]
    if conditions and len(conditions) != len(items):
        raise NoEquivalentError(given.line, "mixes numbers with filters; write every item as {filter, value}")
    if not conditions:
        return _on_gradient(items, t)
    for condition in conditions:
        entries = condition.entries("a condition")
        unknown = next((key for key in entries if key not in ("filter", "value")), None)
        if unknown is not None:
            hint = nearest(unknown, ("filter", "value"), listed=True)
            raise NoEquivalentError(entries[unknown].line, f"'{unknown}' is not a key of a condition{hint}")
        if "value" not in entries:
            raise NoEquivalentError(condition.line, "a condition needs a value")
        if _fits(entries.get("filter"), name):
            return setting(entries["value"], name, t)
    return None


def lookup(parameter: str, levels: Sequence[Parameters], name: str, t: float) -> Value | None:
    """The value at the first level that has one."""
    for level in levels:
        if parameter in level and (found := setting(level[parameter], name, t)) is not None:
            return found
    return None


def filters(given: Located) -> Iterator[tuple[str, int]]:
    """The filters of a parameter, in order, and their lines; without those that fit every name."""
    if isinstance(given.value, list):
        for item in given.value:
            if isinstance(item.value, dict) and (text := _filter(item.value.get("filter"))) is not None:
                yield text, item.value["filter"].line


def gradients(given: Located) -> Iterator[Located]:
    """The lists of numbers in a parameter that are not the same for every layer."""
    if not isinstance(given.value, list):
        return
    if not any(isinstance(item.value, dict) for item in given.value):
        if len({repr(item.value) for item in given.value}) > 1:
            yield given
        return
    for item in given.value:
        if isinstance(item.value, dict) and "value" in item.value:
            yield from gradients(item.value["value"])


def _on_gradient(items: Sequence[Located], t: float) -> Value:
    values = [_number(item) for item in items]
    place = t * (len(values) - 1)
    index = int(place)
    if any(isinstance(value, bool) for value in values):
        return Value(values[index], items[index].line)
    following = values[min(len(values) - 1, index + 1)]
    return Value((1 - (place - index)) * values[index] + (place - index) * following, items[index].line)


def _number(given: Located) -> Number:
    if isinstance(given.value, bool):
        return given.value
    try:
        return float(given.value)
    except (TypeError, ValueError):
        kind = "a single condition; write it as a list" if isinstance(given.value, dict) else f"{given.value!r}"
        raise NoEquivalentError(given.line, f"a number is needed, not {kind}") from None


def _filter(given: Located | None) -> str | None:
    return None if given is None or given.value in (None, "*") else str(given.value)


def _fits(given: Located | None, name: str) -> bool:
    text = _filter(given)
    return text is None or text in name
