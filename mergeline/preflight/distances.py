"""How far a task model is from its base, and when that says that it is not its base."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from math import prod

import torch
from torch import Tensor

from mergeline.checkpoints.readers import Reader
from mergeline.merging.engine import DEFAULT_PATTERNS
from mergeline.merging.patterns import is_copied
from mergeline.preflight.findings import Distance

# Fine-tuned models stay near their base: the shipped ones at a ratio of 0.10 to 0.14 and a cosine of 0.990 to 0.996.
# Against the other base of the zoo they have 1.40 to 1.42 and 0.01: weights of models trained from different starts are
# at right angles. What such models share are the gains of their normalisation, all near 1, which in a small model
# outweigh the weights: tensors of fewer than 2 dimensions are left out. The thresholds lie in the middle: long training
# on other data moves a model far, and an alarm that cries wolf is not read.
FAR = 0.75
UNLIKE = 0.7
SAMPLED = 1 << 24  # entries of a model that are looked at; beyond that blocks spread evenly over every tensor
BLOCK = 1 << 12


def distance(model: Reader, base: Reader, *, sampled: int = SAMPLED) -> Distance | None:
    """The distance over the matrices (2 dimensions or more) that both have in one shape, tied ones once; None where
    there is none.

    Statistics of data (running means and variances) and counters are left out: they are not merged as parameters.
    sampled: of larger models so many entries are looked at, always the same ones. ValueError, naming the tensor, where
    NaN or infinity is met on the way.
    """
    parameters = comparable(model, base)
    names = [name for name in parameters if prod(model.shape(name)) and len(model.shape(name)) > 1]
    total = sum(prod(model.shape(name)) for name in names)
    if not total:
        return None
    share = min(1.0, sampled / total)
    sums = torch.zeros(3, dtype=torch.float64)
    seen = 0
    for name in names:
        found, before = torch.zeros(3, dtype=torch.float64), seen
        for one, other in _blocks(model, base, name, share):
            seen += len(one)
            difference = one - other
            pairs = ((other, other), (one, one), (difference, difference))
            found += torch.tensor([float(torch.dot(a, b)) for a, b in pairs], dtype=torch.float64)
        if not torch.isfinite(found).all():
            raise ValueError(name)
        sums += found * (prod(model.shape(name)) / (seen - before))
    base_square, model_square, square = sums.tolist()
    if not base_square:
        return None
    norms = math.sqrt(base_square * model_square)
    cosine = (base_square + model_square - square) / 2 / norms if norms else 0.0
    ratio = math.sqrt(square / base_square)
    vectors = [name for name in parameters if len(model.shape(name)) < 2]
    equal = seen == total and not ratio
    same = equal and all(torch.equal(model[name].double(), base[name].double()) for name in vectors)
    return Distance(model.source, base.source, ratio, min(max(cosine, -1.0), 1.0), seen / total, same)


def comparable(model: Reader, base: Reader) -> list[str]:
    """Names of the parameters that both have in one shape, tied ones once."""
    tied = model.tied()
    return [
        name
        for name in model.names()
        if name not in tied
        and name in base
        and not is_copied(model, name)
        and not any(fnmatchcase(name, pattern) for pattern in DEFAULT_PATTERNS)
        and model.shape(name) == base.shape(name)
    ]


def alarm(found: Distance, alternatives: Sequence[Distance]) -> str | None:
    """What to say of a distance that no fine-tuning explains. alternatives: distances to the plan's other bases."""
    if found.same:
        return (
            f"{found.model} is the same as its base {found.base}: its task vector is zero, so it adds nothing; "
            "check its uri, or leave it out"
        )
    if found.ratio <= FAR and found.cosine >= UNLIKE:
        return None
    said = (
        f"{found.base} is hardly the base of {found.model}: they differ by {found.ratio:.2f} times the norm of the "
        f"base, at a cosine of {found.cosine:.2f} (a fine-tuned model: below {FAR} and above {UNLIKE})"
    )
    better = [other for other in alternatives if other.ratio < found.ratio and other.cosine >= UNLIKE]
    if better:
        near = min(better, key=lambda other: other.ratio)
        return f"{said}; {near.base} is far nearer ({near.ratio:.2f}, {near.cosine:.2f}): write base: {near.base}"
    return f"{said}; check which checkpoint it was trained from, or merge without bases (method: average)"


def _blocks(model: Reader, base: Reader, name: str, share: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of flat float32 pieces of one tensor: all of it, or blocks at even distances."""
    size = prod(model.shape(name))
    for start, stop in spans(size, share):
        yield (
            model.read_flat(name, start, stop).detach().float(),
            base.read_flat(name, start, stop).detach().float(),
        )


def spans(size: int, share: float) -> Sequence[tuple[int, int]]:
    """What is looked at of a tensor of so many entries."""
    if share >= 1:
        step = 1 << 18
        return [(start, min(start + step, size)) for start in range(0, size, step)]
    blocks = -(-size // BLOCK)
    taken = max(1, min(blocks, math.ceil(blocks * share)))
    starts = [index * blocks // taken * BLOCK for index in range(taken)]
    return [(start, min(start + BLOCK, size)) for start in starts]
