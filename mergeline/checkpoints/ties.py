"""Tied weights: names that are one tensor, to be merged once and to stay one."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch import nn


def ties_by(keys: Mapping[str, Hashable]) -> dict[str, str]:
    """Name -> the first in order of the names with the same key; a name that is the first, or alone, is left out."""
    firsts: dict[Hashable, str] = {}
    for name in sorted(keys):
        firsts.setdefault(keys[name], name)
    return {name: firsts[keys[name]] for name in sorted(keys) if firsts[keys[name]] != name}


def common_ties(ties: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The ties that hold in each of several checkpoints."""
    tied_anywhere = {name for tied in ties for pair in tied.items() for name in pair}
    return ties_by({name: tuple(tied.get(name, name) for tied in ties) for name in tied_anywhere})


def memory_of(name: str, tensor: Tensor) -> Hashable:
    """What is equal for two tensors if and only if they are the same numbers in memory; a part of another is not it."""
    if not tensor.numel() or tensor.device.type == "meta":
        return name
    return tensor.data_ptr(), tensor.device, tensor.dtype, tuple(tensor.shape), tensor.stride()


def tied_names(module: "nn.Module") -> dict[str, str]:
    """Name -> the first name of the same parameter or buffer of a module, as `Reader.tied` gives it for its state dict.

    Parameters and buffers that are one object are tied; so are those that a Hugging Face model says it ties
    (`all_tied_weights_keys`, or `_tied_weights_keys` of name to name where its config has tie_word_embeddings),
    though it may not have tied them yet.
    """
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    keys: dict[str, Hashable] = {name: id(tensor) for name, tensor in named}
    shapes = {name: tensor.shape for name, tensor in named}
    for name, other in _declared(module).items():
        if name in keys and other in keys and shapes[name] == shapes[other]:
            old, new = keys[name], keys[other]
            keys = {known: new if key == old else key for known, key in keys.items()}
    return ties_by(keys)


def _declared(module: "nn.Module") -> Mapping[str, str]:
    declared = getattr(module, "all_tied_weights_keys", None)
    if declared is None and getattr(getattr(module, "config", None), "tie_word_embeddings", False):
        declared = getattr(module, "_tied_weights_keys", None)
    return declared if isinstance(declared, Mapping) else {}


def equal_bits(one: Iterable[Tensor], other: Iterable[Tensor]) -> bool:
    """Whether two tensors, given in pieces of equal shapes, hold the same bits (NaN equals NaN)."""
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)) for a, b in pairs)
