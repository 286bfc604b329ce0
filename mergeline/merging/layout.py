"""Whether checkpoints hold the same tensors, and if not, which sentence helps to mend them."""

from collections.abc import Sequence

from mergeline.checkpoints.readers import Reader
from mergeline.errors import InputError, nearest
from mergeline.merging.registry import Evidence

SHOWN = 8  # faults listed before "and n more"


def check_same_tensors(reference: Reader, others: Sequence[Reader]) -> None:
    """InputError listing what is missing, what is extra and what has another shape or kind of dtype."""
    if not len(reference):
        raise InputError(f"{reference.source} holds no tensors.")
    for name in reference:
        if reference.dtype(name).is_complex:
            raise InputError(f"{reference.source}: tensor {name!r} is complex; only real tensors can be merged.")
    for other in others:
        faults = tensor_faults(reference, other)
        if faults:
            more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
            raise InputError(
                f"{other.source} does not hold the same tensors as {reference.source}: "
                f"{'; '.join(faults[:SHOWN])}{more}."
            )


def tensor_faults(reference: Reader, other: Reader) -> list[str]:
    """What is missing, extra or different in `other`, one clause each, beginning with the quoted name of the tensor."""
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


def check_evidence(kind: Evidence | None, model: Reader, merged: Sequence[str], evidence: Sequence[Reader]) -> None:
    """InputError listing what the evidence lacks.

    fisher: every merged tensor in its own shape. gram, merged_gram: square matrices, of the same tensors in
    every reader; a tensor may have none.
    """
    for reader in evidence:
        faults = [
            fault
            for name in (merged if kind == "fisher" else evidence[0].names())
            if (fault := _evidence_fault(kind, name, model, reader))
        ]
        if faults:
            more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
            raise InputError(f"{reader.source} does not fit {model.source}: {'; '.join(faults[:SHOWN])}{more}.")


def _evidence_fault(kind: Evidence | None, name: str, model: Reader, reader: Reader) -> str | None:
    if name not in reader:
        return f"{name!r} is missing{_suggestion(name, set(reader.names()))}"
    if kind == "fisher":
        shape, expected = reader.shape(name), model.shape(name)
        return None if shape == expected else f"{name!r} has shape {list(shape)}, not {list(expected)}"
    if name not in model:
        return f"{name!r} is extra{_suggestion(name, set(model.names()))}"
    shape = reader.shape(name)
    return None if len(shape) == 2 and shape[0] == shape[1] else f"{name!r} has shape {list(shape)}, not [in, in]"
