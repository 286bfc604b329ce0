"""Domains: index sets under one permutation, merged by union-find and refined as constraints arrive.

A domain is *free* (any permutation of its slots), *frozen* (the identity only) or *refined*:

product   slot x is inner slot x % block of outer slot x // block: outer units move whole, and the inner units of each
          are permuted on their own (a wreath product)
sum       consecutive segments, each permuted on its own (a direct product)

A refinement is global: whatever mentions the domain sees it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
NONE = -1
"""In place of a domain: positions that no permutation moves (or that carry no further structure)."""

Axis = tuple[str, int]
"""A parameter and one of its dimensions."""


@dataclass(frozen=True)
class Product:
    """`inner[i]` is the domain of the `block` slots inside slot i of `outer`."""

    outer: int
    inner: Indices
    block: int

    def parts(self) -> Iterator[int]:
        """All domains below."""
        yield self.outer
        yield from self.inner.tolist()


@dataclass(frozen=True)
class Sum:
    """Segment k takes the slots from `starts[k]` on, and has the domain `segments[k]`."""

    segments: Indices
    starts: Indices

    def parts(self) -> Iterator[int]:
        """All domains below."""
        yield from self.segments.tolist()


@dataclass(frozen=True)
class Reason:
    """Why units stay where they are: what was found, at which operation of the trace."""

    text: str
    node: str

    def __str__(self) -> str:
        return f"{self.text} ({self.node})" if self.node else self.text


class Domains:
    """All domains of one derivation. `node` is the operation being interpreted: later freezes are put down to it."""

    def __init__(self) -> None:
        self.node = ""
        self.version = 0  # rises with every union, refinement and freeze
        self._parent: list[int] = []
        self._size: list[int] = []
        self._refinement: list[Product | Sum | None] = []
        self._reason: list[Reason | None] = []  # set on frozen domains only
        self._hint: list[str] = []

    def __len__(self) -> int:
        return len(self._parent)

    def new(self, size: int) -> int:
        """A free domain; a single slot cannot move and needs none."""
        if size <= 1:
            return NONE
        self._parent.append(len(self._parent))
        self._size.append(size)
        self._refinement.append(None)
        self._reason.append(None)
        self._hint.append("")
        return len(self._parent) - 1

    def new_many(self, count: int, size: int) -> Indices:
        """`count` free domains of one size."""
        return np.array([self.new(size) for _ in range(count)], dtype=np.int64)

    def find(self, domain: int) -> int:
        """The domain that stands for all that were united with this one."""
        if domain < 0:
            return NONE
        while self._parent[domain] != domain:
            self._parent[domain] = self._parent[self._parent[domain]]
            domain = self._parent[domain]
        return domain

    def size(self, domain: int) -> int:
        """Number of slots."""
        return self._size[domain]

    def reason(self, domain: int) -> Reason | None:
        """Why the domain is frozen; None where it is not."""
        return self._reason[self.find(domain)]

    def refinement(self, domain: int) -> Product | Sum | None:
        """How the domain is refined, if it is."""
        return self._refinement[self.find(domain)]

    def is_open(self, domain: int) -> bool:
        """Whether the domain stands for itself, and is neither frozen nor refined."""
        return self._parent[domain] == domain and self._reason[domain] is None and self._refinement[domain] is None

    def freeze(self, domain: int, why: str) -> None:
        """Allow the identity only, here and in everything below."""
        domain = self.find(domain)
        if domain < 0 or self._reason[domain] is not None:
            return
        self.version += 1
        self._reason[domain] = Reason(why, self.node)
        refinement = self._refinement[domain]
        for part in set(refinement.parts()) if refinement else ():
            self.freeze(part, why)

    def refine_product(self, domain: int, block: int) -> None:
        """Split an open domain into outer slots of `block` inner slots each."""
        domain = self._open_root(domain)
        outer, rest = divmod(self._size[domain], block)
        assert rest == 0 and 1 < block < self._size[domain], "a product needs a proper divisor"
        self._refine(domain, Product(self.new(outer), self.new_many(outer, block), block))

    def refine_sum(self, domain: int, cuts: Iterable[int]) -> None:
        """Split an open domain into the segments between `cuts`."""
        domain = self._open_root(domain)
        size = self._size[domain]
        edges = [0, *sorted({cut for cut in cuts if 0 < cut < size}), size]
        assert len(edges) > 2, "a sum needs a cut inside the domain"
        lengths = np.diff(edges).tolist()
        segments = np.array([self.new(length) for length in lengths], dtype=np.int64)
        self._refine(domain, Sum(segments, np.array(edges[:-1], dtype=np.int64)))

    def unite(self, first: int, second: int) -> None:
        """Put two open domains of one size under one permutation."""
        first, second = self._open_root(first), self._open_root(second)
        if first == second:
            return
        assert self._size[first] == self._size[second], "united domains have one size"
        self.version += 1
        keep, drop = min(first, second), max(first, second)
        self._parent[drop] = keep
        self._hint[keep] = self._hint[keep] or self._hint[drop]

    def suggest(self, domain: int, hint: str) -> None:
        """Remember what the units of a domain are, to name them ('heads', 'groups'); the first suggestion stays."""
        domain = self.find(domain)
        if domain >= 0:
            self._hint[domain] = self._hint[domain] or hint

    def hint(self, domain: int) -> str:
        """The suggestion for the name of the units, or ''."""
        return self._hint[self.find(domain)]

    def _open_root(self, domain: int) -> int:
        domain = self.find(domain)
        assert domain >= 0 and self.is_open(domain), "only an open domain can be refined or united"
        return domain

    def _refine(self, domain: int, refinement: Product | Sum) -> None:
        self.version += 1
        self._refinement[domain] = refinement
