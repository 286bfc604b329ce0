"""Options that hold for some tensors only: `{'*.mlp.*': {'keep_ratio': 0.1}}`.

Patterns are those of file names (`fnmatch`: * ? [abc]) and match whole tensor names, dots included. All patterns that
match a tensor apply, in the order given; where two set the same option, the later one wins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import TYPE_CHECKING, Any

from mergeline.errors import InputError, nearest
from mergeline.merging.registry import Method, get

if TYPE_CHECKING:
    from mergeline.checkpoints.readers import Reader

FIRST_PATTERNS = ("*num_batches_tracked",)  # counters: like every integer tensor, the first model's value
OptionsByPattern = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class PatternMatch:
    """A row of the pre-flight's table: a pattern, what it sets, and how much it reaches."""

    pattern: str
    options: dict[str, Any]
    tensors: int
    entries: int  # numbers in these tensors, of one model


def pattern_faults(method: Method, by_pattern: OptionsByPattern) -> dict[str, str]:
    """Pattern -> what is wrong with the options that it sets; needs no checkpoint."""
    faults = {}
    for pattern, options in by_pattern.items():
        if not isinstance(options, Mapping) or not options:
            faults[pattern] = "sets no options; write {option: value}"
        elif wrong := method.value_faults(options):
            faults[pattern] = "; ".join(wrong.values())
    return faults


def check_patterns(
    method: Method, by_pattern: OptionsByPattern, names: Sequence[str], aliases: Mapping[str, str]
) -> None:
    """InputError naming the patterns that set wrong options, or match none of the names.

    aliases: names of tied tensors -> the name under which the tensor is merged, whose options count.
    """
    faults = pattern_faults(method, by_pattern)
    for pattern in by_pattern:
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if pattern in faults or any(name not in aliases for name in matched):
            continue
        faults[pattern] = f"no merged tensor matches{_idea(pattern, names)}"
        if matched:
            first = matched[0]
            faults[pattern] = f"matches only {first!r}, which is tied to {aliases[first]!r}; match that one"
    if faults:
        raise InputError("; ".join(f"options_by_pattern: {pattern!r}: {fault}" for pattern, fault in faults.items()))


def match_table(method: Method, by_pattern: OptionsByPattern, model: Reader) -> list[PatternMatch]:
    """A row for each pattern, in order; InputError as of `check_patterns`."""
    names = [name for name in model.names() if not is_copied(model, name)]
    check_patterns(method, by_pattern, names, {})
    rows = []
    for pattern, options in by_pattern.items():
        reached = [name for name in names if fnmatchcase(name, pattern)]
        rows.append(
            PatternMatch(pattern, dict(options), len(reached), sum(prod(model.shape(name)) for name in reached))
        )
    return rows


def is_copied(model: Reader, name: str) -> bool:
    """Whether a tensor takes the first model's value: integers, flags and counters do, whatever the method."""
    counter = any(fnmatchcase(name, pattern) for pattern in FIRST_PATTERNS)
    return counter or not model.dtype(name).is_floating_point


def options_for(name: str, method: Method, by_pattern: OptionsByPattern) -> dict[str, Any]:
    """What the patterns set for one tensor."""
    found: dict[str, Any] = {}
    for pattern, options in by_pattern.items():
        if fnmatchcase(name, pattern):
            found |= {key: method.options[key].check(value) for key, value in options.items()}
    return found


def option_of(
    option: str, method: str, options: Mapping[str, Any], by_pattern: OptionsByPattern
) -> Callable[[str], Any]:
    """Name of a tensor -> the value that an option of the method has for it, for what works outside the engine."""
    entry = get(method)
    general = entry.validate_options(options)[option]
    return lambda name: options_for(name, entry, by_pattern).get(option, general)


def _idea(pattern: str, names: Sequence[str]) -> str:
    """The pattern with its unknown words replaced by those that the names have, where that matches something."""
    known = sorted({word for name in names for word in name.split(".")})
    words = [word if set(word) & set("*?[") or word in known else _closest(word, known) for word in pattern.split(".")]
    changed = ".".join(words)
    if changed != pattern and any(fnmatchcase(name, changed) for name in names):
        return f"; did you mean {changed!r}?"
    inside = f"*{pattern}*"
    if any(fnmatchcase(name, inside) for name in names):
        return f"; a pattern matches whole names: did you mean {inside!r}?"
    return nearest(pattern, names) or f" (a tensor is called {names[0]!r})"


def _closest(word: str, known: Sequence[str]) -> str:
    hint = nearest(word, known)
    return hint.split("'")[1] if hint else word
