"""Whether checkpoints hold the same tensors, and if not, which sentence helps to mend them."""

from collections.abc import Sequence

from mergeline.checkpoints.readers import Reader
from mergeline.errors import InputError, nearest

SHOWN = 8  # faults listed before "and n more"


def check_same_tensors(reference: Reader, others: Sequence[Reader]) -> None:
    """InputError listing what is missing, what is extra and what has another shape or kind of dtype."""
    if not len(reference):
        raise InputError(f"{reference.source} holds no tensors.")
    for name in reference:
        if reference.dtype(name).is_complex:
            raise InputError(f"{reference.source}: tensor {name!r} is complex; only real tensors can be merged.")
    for other in others:
        faults = _faults(reference, other)
        if faults:
            more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
            raise InputError(
                f"{other.source} does not hold the same tensors as {reference.source}: "
                f"{'; '.join(faults[:SHOWN])}{more}."
            )


def _faults(reference: Reader, other: Reader) -> list[str]:
    wanted, held = set(reference.names()), set(other.names())
    faults = [f"{name!r} is missing{_suggestion(name, held - wanted)}" for name in sorted(wanted - held)]
    faults += [f"{name!r} is extra{_suggestion(name, wanted - held)}" for name in sorted(held - wanted)]
    for name in sorted(wanted & held):
        shape, expected = other.shape(name), reference.shape(name)
        if shape != expected:
            faults.append(f"{name!r} has shape {list(shape)}, not {list(expected)}")
        elif other.dtype(name).is_floating_point != reference.dtype(name).is_floating_point:
            faults.append(f"{name!r} is {other.dtype(name)}, not {reference.dtype(name)}")
    return faults


def _suggestion(name: str, candidates: set[str]) -> str:
    hint = nearest(name, sorted(candidates)).removeprefix("; ")
    return f" ({hint})" if hint else ""
