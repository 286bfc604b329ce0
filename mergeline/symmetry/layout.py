"""How one tensor axis is made of exchangeable units: a small language, e.g. `heads * qk + heads * qk + heads * v`.

_4            four positions that stay where they are
stream        the units of family `stream`
heads * v     for each unit of `heads`, the units of `v`
a + b         the units of `a`, then the units of `b`
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mergeline.errors import InputError


@dataclass(frozen=True)
class Fixed:
    """`size` positions that no permutation moves."""

    size: int

    def __str__(self) -> str:
        return f"_{self.size}"


@dataclass(frozen=True)
class Units:
    """The units of one family, each one position wide."""

    family: str

    def __str__(self) -> str:
        return self.family


@dataclass(frozen=True)
class Blocks:
    """The units of a family, each as wide as `inner`."""

    family: str
    inner: Layout

    def __str__(self) -> str:
        inner = f"({self.inner})" if isinstance(self.inner, Segments) else str(self.inner)
        return f"{self.family} * {inner}"


@dataclass(frozen=True)
class Segments:
    """Layouts one after the other."""

    parts: tuple[Layout, ...]

    def __str__(self) -> str:
        return " + ".join(str(part) for part in self.parts)


Layout = Fixed | Units | Blocks | Segments


def width(layout: Layout, sizes: Mapping[str, int]) -> int:
    """Length of an axis with this layout, given the number of units of each family."""
    match layout:
        case Fixed(size):
            return size
        case Units(family):
            return sizes[family]
        case Blocks(family, inner):
            return sizes[family] * width(inner, sizes)
        case Segments(parts):
            return sum(width(part, sizes) for part in parts)


def families_of(layout: Layout) -> Iterator[str]:
    """Names of the families in a layout, outer before inner, with repetitions."""
    match layout:
        case Units(family):
            yield family
        case Blocks(family, inner):
            yield family
            yield from families_of(inner)
        case Segments(parts):
            for part in parts:
                yield from families_of(part)


@dataclass(frozen=True)
class Term:
    """A stretch of an axis whose units belong together: positions [start, start + size), families outer to inner."""

    path: tuple[str, ...]
    start: int
    size: int


def terms(layout: Layout, sizes: Mapping[str, int], start: int = 0) -> Iterator[Term]:
    """The stretches of an axis that carry units; fixed stretches are left out."""
    match layout:
        case Fixed():
            return
        case Segments(parts):
            for part in parts:
                yield from terms(part, sizes, start)
                start += width(part, sizes)
        case _:
            yield Term(tuple(families_of(layout)), start, width(layout, sizes))


_TOKEN = re.compile(r"[()+*]|[^\s()+*]+")


def parse(text: str) -> Layout:
    """Read a layout back from its text. Raises InputError where the text is not one."""
    tokens = _TOKEN.findall(text)
    layout, rest = _parse_segments(tokens, text)
    if rest:
        raise InputError(f"layout '{text}': cannot read from '{rest[0]}' on; write e.g. 'stream' or 'heads * v + _4'")
    return layout


def _parse_segments(tokens: list[str], text: str) -> tuple[Layout, list[str]]:
    first, tokens = _parse_blocks(tokens, text)
    parts = [first]
    while tokens and tokens[0] == "+":
        part, tokens = _parse_blocks(tokens[1:], text)
        parts.append(part)
    return (parts[0] if len(parts) == 1 else Segments(tuple(parts))), tokens


def _parse_blocks(tokens: list[str], text: str) -> tuple[Layout, list[str]]:
    head, tokens = _parse_atom(tokens, text)
    if not tokens or tokens[0] != "*":
        return head, tokens
    if not isinstance(head, Units):
        raise InputError(f"layout '{text}': '*' must follow the name of a family")
    inner, tokens = _parse_blocks(tokens[1:], text)
    return Blocks(head.family, inner), tokens


def _parse_atom(tokens: list[str], text: str) -> tuple[Layout, list[str]]:
    if not tokens or tokens[0] in "+*)":
        raise InputError(f"layout '{text}': a family name or a fixed width such as '_4' is missing")
    if tokens[0] == "(":
        layout, tokens = _parse_segments(tokens[1:], text)
        if not tokens or tokens[0] != ")":
            raise InputError(f"layout '{text}': a closing parenthesis is missing")
        return layout, tokens[1:]
    if re.fullmatch(r"_\d+", tokens[0]):
        return Fixed(int(tokens[0][1:])), tokens[1:]
    return Units(tokens[0]), tokens[1:]
