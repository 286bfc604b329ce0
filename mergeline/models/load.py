"""A checkpoint put into the module it is a state of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mergeline.checkpoints.readers import Reader
from mergeline.errors import InputError, nearest
from mergeline.models.build import build_model


def load_model(factory: str, kwargs: Mapping[str, Any], checkpoint: Reader) -> nn.Module:
    """Build the module and give it the tensors of the checkpoint, converted to the module's dtypes; eval mode.

    Raises InputError naming the checkpoint and the first tensor that is missing, unknown or of another shape.
    """
    module = build_model(factory, kwargs)
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    names = set(checkpoint.names())
    for name, shape in expected.items():
        if name not in names:
            raise InputError(f"{checkpoint.source}: tensor '{name}' of {factory} is missing{nearest(name, names)}")
        if checkpoint.shape(name) != shape:
            raise InputError(
                f"{checkpoint.source}: tensor '{name}' has shape {list(checkpoint.shape(name))}, "
                f"{factory} with {dict(kwargs)} makes {list(shape)}; check architecture.kwargs"
            )
    for name in sorted(names - set(expected)):
        raise InputError(f"{checkpoint.source}: tensor '{name}' has no place in {factory}{nearest(name, expected)}")
    module.load_state_dict(dict(checkpoint))
    return module
