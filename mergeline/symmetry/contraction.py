"""The fourth primitive: einsum, which is pointwise in the joint index space followed by a reduction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from mergeline.symmetry.domains import Axis
from mergeline.symmetry.labels import AbstractTensor
from mergeline.symmetry.movement import permute, unsqueeze
from mergeline.symmetry.primitives import pointwise, reduce
from mergeline.symmetry.symmetry import CONSUMER, PRODUCER


@dataclass(frozen=True)
class Sighting:
    """Activations `value` show units along `axes` where operation `consumer` reads (use) or makes (def) them."""

    value: str
    axes: tuple[int, ...]
    kind: Literal["def", "use"]
    consumer: str


@dataclass
class Record:
    """What operations tell beside the labels: who writes and who reads units, and where they can be seen.

    pooled: values that are averages over positions -> the values before, which show the same units more often.
    """

    roles: dict[Axis, set[str]] = field(default_factory=lambda: defaultdict(set))
    sightings: list[Sighting] = field(default_factory=list)
    pooled: dict[str, str] = field(default_factory=dict)

    def reads(self, x: AbstractTensor, axis: int, consumer: str) -> None:
        """`consumer` sums over an axis of x."""
        for source in x.sources[axis]:
            self.roles[source].add(CONSUMER)
        if x.activation and x.node:
            self.sightings.append(Sighting(x.node, (axis,), "use", consumer))

    def writes(self, sources: Sequence[frozenset[Axis]], node: str) -> None:
        """`node` gives activations whose axes stem from these parameter axes."""
        for axis_sources in sources:
            for source in axis_sources:
                self.roles[source].add(PRODUCER)
        axes = tuple(axis for axis, axis_sources in enumerate(sources) if axis_sources)
        if axes:
            self.sightings.append(Sighting(node, axes, "def", node))

    def pools(self, x: AbstractTensor, node: str) -> None:
        """`node` pools or averages x."""
        if x.activation and x.node:
            self.pooled[node] = self.pooled.get(x.node, x.node)

    def keeps(self, x: AbstractTensor, node: str) -> None:
        """`node` gives the elements of x in another shape."""
        if x.node in self.pooled:
            self.pooled[node] = self.pooled[x.node]


def einsum(
    equation: str, tensors: Sequence[AbstractTensor], record: Record | None = None, node: str = ""
) -> AbstractTensor:
    """Contract tensors as torch.einsum does ('bi,oi->bo'; no repeated letter in one operand, no ellipsis).

    With a record, roles and sightings are put down to `node`; without one, the caller does that.
    """
    left, kept = equation.replace(" ", "").split("->")
    terms = left.split(",")
    summed = sorted(set(left) - set(kept) - {","})
    letters = [*kept, *summed]
    joint = pointwise([_aligned(x, term, letters) for x, term in zip(tensors, terms, strict=True)])
    result = reduce(joint, range(len(kept), len(letters)))
    if len(tensors) == 2 and all(x.activation for x in tensors):
        _suggest_attention_names(joint, terms, kept, letters)
    sources = tuple(
        frozenset().union(*[x.sources[term.index(c)] for x, term in zip(tensors, terms, strict=True) if c in term])
        for c in kept
    )
    if record:
        for x, term in zip(tensors, terms, strict=True):
            for letter in summed:
                if letter in term:
                    record.reads(x, term.index(letter), node)
        if result.activation:
            record.writes(sources, node)
            sources = ()
    return replace(result, sources=sources or (frozenset(),) * len(kept))


def _aligned(x: AbstractTensor, term: str, letters: Sequence[str]) -> AbstractTensor:
    """The operand with one axis for every letter, in order; absent letters get size 1."""
    x = permute(x, [term.index(letter) for letter in letters if letter in term])
    for place, letter in enumerate(letters):
        if letter not in term:
            x = unsqueeze(x, place)
    return x


def _suggest_attention_names(joint: AbstractTensor, terms: Sequence[str], kept: str, letters: Sequence[str]) -> None:
    """Name units where activations meet activations: heads are shared, q and k units summed, v units kept."""
    for axis, letter in enumerate(letters):
        shared = all(letter in term for term in terms)
        names = ("heads", "queries") if shared and letter in kept else ("qk",) if shared else ("v",)
        label = joint.label(axis) or ()
        for level, name in zip(label, names, strict=False):
            for domain in level.members:
                joint.domains.suggest(domain, name)
