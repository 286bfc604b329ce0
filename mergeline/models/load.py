"""A checkpoint put into the module it is a state of."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from mergeline.checkpoints.heads import is_of
from mergeline.checkpoints.readers import Reader
from mergeline.errors import InputError, nearest
from mergeline.evidence.measuring import names_of
from mergeline.models.build import build_model


def load_model(factory: str, kwargs: Mapping[str, Any], checkpoint: Reader, heads: Collection[str] = ()) -> nn.Module:
    """Build the module and give it the tensors of the checkpoint, converted to the module's dtypes; eval mode.

    heads: parts of the module that belong to single tasks: they take the shape that the checkpoint has them in, and
    are 0 where it has none. A parameter that the module ties to another one may be missing, if that one is there.
    Raises InputError naming the checkpoint and the first tensor that is missing, unknown or of another shape.
    """
    module = build_model(factory, kwargs)
    _fit_heads(module, checkpoint, heads)
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    names = set(checkpoint.names())
    tied = {name: set(same) for same in names_of(module).values() for name in same if len(same) > 1}
    for name, shape in expected.items():
        if name not in names and (any(is_of(name, head) for head in heads) or tied.get(name, set()) & names):
            continue
        if name not in names:
            raise InputError(f"{checkpoint.source}: tensor '{name}' of {factory} is missing{nearest(name, names)}")
        if checkpoint.shape(name) != shape:
            raise InputError(
                f"{checkpoint.source}: tensor '{name}' has shape {list(checkpoint.shape(name))}, "
                f"{factory} with {dict(kwargs)} makes {list(shape)}; check architecture.kwargs"
            )
    for name in sorted(names - set(expected)):
        raise InputError(f"{checkpoint.source}: tensor '{name}' has no place in {factory}{nearest(name, expected)}")
    module.load_state_dict(dict(checkpoint), strict=False)  # all names were looked at
    return module


def _fit_heads(module: nn.Module, checkpoint: Reader, heads: Collection[str]) -> None:
    """Empty heads of the checkpoint's shapes in place of the module's."""
    for name, tensor in module.state_dict().items():
        if not any(is_of(name, head) for head in heads):
            continue
        owner, last = module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        shape = checkpoint.shape(name) if name in checkpoint else tuple(tensor.shape)
        if last in dict(owner.named_parameters(recurse=False)):
            setattr(owner, last, nn.Parameter(torch.zeros(shape, dtype=tensor.dtype)))
        if isinstance(owner, nn.Linear) and last == "weight":
            owner.out_features, owner.in_features = shape
