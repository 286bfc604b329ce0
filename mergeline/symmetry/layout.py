"""How one tensor axis is made of exchangeable units: a small language, e.g. `heads * qk + heads * qk + heads * v`.

_4            four positions that stay where they are
#4            the same, and units of other axes lie over them: each of the four has its own
stream        the units of family `stream`
heads * v     for each unit of `heads`, the units of `v`
a + b         the units of `a`, then the units of `b`
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mergeline.errors import InputError


@dataclass(frozen=True)
class Fixed:
    """`size` positions that no permutation moves; `counted` where units of other axes lie over them."""

    size: int
    counted: bool = False

    def __str__(self) -> str:
        return f"{'#' if self.counted else '_'}{self.size}"


@dataclass(frozen=True)
class Units:
    """The units of one family, each one position wide."""

    family: str

    def __str__(self) -> str:
        return self.family


@dataclass(frozen=True)
class Blocks:
    """The units of a family, each as wide as `inner`; or fixed positions that `inner` lies over (`#4 * v`)."""

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


def extent(name: str, sizes: Mapping[str, int]) -> int:
    """Number of units of a family, or of the fixed positions (`#8`) that units of other axes lie over."""
    return int(name[1:]) if is_counted(name) else sizes[name]


def is_counted(name: str) -> bool:
    """Whether a name in `over` means fixed positions."""
    return re.fullmatch(r"#\d+", name) is not None


def width(layout: Layout, sizes: Mapping[str, int]) -> int:
    """Length of an axis with this layout, given the number of units of each family."""
    match layout:
        case Fixed():
            return layout.size
        case Units(family):
            return sizes[family]
        case Blocks(family, inner):
            return extent(family, sizes) * width(inner, sizes)
        case Segments(parts):
            return sum(width(part, sizes) for part in parts)


def families_of(layout: Layout) -> Iterator[str]:
    """Names of the families in a layout, outer before inner, with repetitions."""
    return (name for name in names_in(layout) if not is_counted(name))


def names_in(layout: Layout) -> Iterator[str]:
    """What units can lie over in a layout: its families, and positions that are counted (`#4`)."""
    match layout:
        case Fixed():
            if layout.counted:
                yield str(layout)
        case Units(family):
            yield family
        case Blocks(family, inner):
            yield family
            yield from names_in(inner)
        case Segments(parts):
            for part in parts:
                yield from names_in(part)


@dataclass(frozen=True)
class Term:
    """Positions of an axis that belong to units of one path of families, outer to inner.

    Unit (i, j, ...) takes the `width` positions from start + i * strides[0] + j * strides[1] + ... on.
    """

    path: tuple[str, ...]
    start: int
    strides: tuple[int, ...]
    width: int = 1


def terms(layout: Layout, sizes: Mapping[str, int]) -> Iterator[Term]:
    """Where an axis carries units; positions that belong to no unit are left out."""
    yield from _terms(layout, sizes, (), 0, ())


def _terms(
    layout: Layout, sizes: Mapping[str, int], path: tuple[str, ...], start: int, strides: tuple[int, ...]
) -> Iterator[Term]:
    match layout:
        case Fixed():
            if path:
                yield Term(path, start, strides, layout.size)
        case Units(family):
            yield Term((*path, family), start, (*strides, 1))
        case Blocks(family, inner):
            yield from _terms(inner, sizes, (*path, family), start, (*strides, width(inner, sizes)))
        case Segments(parts):
            for part in parts:
                yield from _terms(part, sizes, path, start, strides)
                start += width(part, sizes)


def factors(layout: Layout) -> list[Units | Fixed] | None:
    """The factors of a pure product, outer to inner; None where the layout is a concatenation."""
    match layout:
        case Blocks(family, inner):
            rest = factors(inner)
            head = Fixed(int(family[1:]), counted=True) if is_counted(family) else Units(family)
            return None if rest is None else [head, *rest]
        case Segments():
            return None
        case _:
            return [layout]


def count(layout: Layout, names: Collection[str]) -> Layout:
    """The pure product with those of its fixed factors counted whose names (`#4`) are given."""
    match layout:
        case Fixed(size):
            return Fixed(size, counted=f"#{size}" in names)
        case Blocks(family, inner):
            return Blocks(family, count(inner, names))
        case _:
            return layout


def rename(layout: Layout, names: Mapping[str, str]) -> Layout:
    """The layout with other names for its families."""
    match layout:
        case Fixed():
            return layout
        case Units(family):
            return Units(names[family])
        case Blocks(family, inner):
            return Blocks(names.get(family, family), rename(inner, names))
        case Segments(parts):
            return Segments(tuple(rename(part, names) for part in parts))


DEEPEST = 50
"""Far deeper than units lie inside of units."""

_TOKEN = re.compile(r"[()+*]|[^\s()+*]+")


def parse(text: str) -> Layout:
    """Read a layout back from its text. Raises InputError where the text is not one."""
    tokens = _TOKEN.findall(text)
    if _depth(tokens) > DEEPEST:
        raise InputError(f"layout '{text[:60]}...': nested more than {DEEPEST} deep")
    layout, rest = _parse_segments(tokens, text)
    if rest:
        raise InputError(f"layout '{text}': cannot read from '{rest[0]}' on; write e.g. 'stream' or 'heads * v + _4'")
    return layout


def _depth(tokens: Sequence[str]) -> int:
    """A bound on how deep a layout is nested by parentheses and products."""
    depth = product = deepest = 0
    for token in tokens:
        depth += (token == "(") - (token == ")")
        product = 0 if token == "+" else product + (token == "*")
        deepest = max(deepest, depth + product)
    return deepest


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
    if not isinstance(head, Units) and not (isinstance(head, Fixed) and head.counted):
        raise InputError(f"layout '{text}': '*' must follow the name of a family")
    inner, tokens = _parse_blocks(tokens[1:], text)
    return Blocks(str(head), inner), tokens


def _parse_atom(tokens: list[str], text: str) -> tuple[Layout, list[str]]:
    if not tokens or tokens[0] in "+*)":
        raise InputError(f"layout '{text}': a family name or a fixed width such as '_4' is missing")
    if tokens[0] == "(":
        layout, tokens = _parse_segments(tokens[1:], text)
        if not tokens or tokens[0] != ")":
            raise InputError(f"layout '{text}': a closing parenthesis is missing")
        return layout, tokens[1:]
    if re.fullmatch(r"[_#]\d+", tokens[0]):
        return Fixed(int(tokens[0][1:]), tokens[0].startswith("#")), tokens[1:]
    return Units(tokens[0]), tokens[1:]
