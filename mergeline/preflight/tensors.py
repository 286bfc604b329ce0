"""What does not fit between the tensors of checkpoints: every fault, not only the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mergeline.checkpoints.adapters import refuse_unlike_adapters
from mergeline.checkpoints.readers import Reader
from mergeline.checkpoints.vocabulary import common_rows, refuse_unlike_vocabularies
from mergeline.errors import InputError
from mergeline.merging.layout import tensor_faults


def unfitting(readers: Sequence[Reader], *, common_vocabulary: bool = False) -> list[str]:
    """A sentence for each fault, beginning with the checkpoint; of an adapter that is unlike the first one only that.

    Tensors that are missing, extra (with the nearest name), of another shape or dtype; vocabularies of different rows;
    adapters that are unlike. The first checkpoint is what the others are compared with. NaN and infinity are not looked
    for: that means reading everything; the merge refuses them by name of file and tensor.
    """
    first = readers[0]
    if not len(first):
        return [f"{first.source}: holds no tensors"]
    faults = [
        f"{first.source}: tensor '{name}' is complex; only real tensors can be merged"
        for name in first.names()
        if first.dtype(name).is_complex
    ]
    if not common_vocabulary:
        faults += _refusal(refuse_unlike_vocabularies, readers)
    first, *others = common_rows(readers)  # what is said of vocabularies is said once
    for reader, other in zip(readers[1:], others, strict=True):
        faults += _refusal(refuse_unlike_adapters, [readers[0], reader]) or [
            f"{other.source}: tensor {fault} (compared with {first.source})" for fault in tensor_faults(first, other)
        ]
    return faults


def _refusal(refuse: Callable[[Sequence[Reader]], None], readers: Sequence[Reader]) -> list[str]:
    try:
        refuse(readers)
    except InputError as fault:
        return [str(fault)]
    return []
