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
from mergeline.models.file_names import names_in_memory


def load_model(
    factory: str,
    kwargs: Mapping[str, Any],
    checkpoint: Reader,
    heads: Collection[str] = (),
    *,
    by_name: bool = True,
) -> nn.Module:
    """Build the module and give it the tensors of the checkpoint, converted to the module's dtypes; eval mode.

    heads: parts of the module that belong to single tasks: they take the shape that the checkpoint has them in, and
    are 0 where it has none. A parameter that the module ties to another one may be missing, if that one is there.
    by_name: whether the caller looks for the checkpoint's names in the module; False also takes a module whose tensors
    have other names in memory than in files (`names_in_memory`).
    Raises InputError naming the checkpoint and the first tensor that is missing, unknown or of another shape.
    """
    module = build_model(factory, kwargs)
    _fit_heads(module, checkpoint, heads)
    memory = names_in_memory(module, checkpoint)
    _refuse_other_names(memory, checkpoint, factory, heads, by_name)
    state, names = module.state_dict(), set(checkpoint.names())
    expected = {name: tuple(state[other].shape) for name, other in memory.items()}
    tied = _tied(module, memory)
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
    tensors = {memory[name]: tensor for name, tensor in checkpoint.items()}
    module.load_state_dict(tensors, strict=False)  # all names were looked at
    return module


def _refuse_other_names(
    memory: Mapping[str, str], checkpoint: Reader, factory: str, heads: Collection[str], by_name: bool
) -> None:
    """Refuse a tensor that is looked for by its name and has another one in memory; heads always are."""
    for name, other in memory.items():
        if name != other and (by_name or any(is_of(name, head) or is_of(other, head) for head in heads)):
            raise InputError(
                f"{checkpoint.source}: tensor '{name}' is '{other}' in memory, as transformers renames those of "
                f"{factory} while loading; such a model can be merged and measured, but not be aligned, calibrated "
                "or merged by what is measured of its layers, and no layer that is renamed can be the head of a task"
            )


def _tied(module: nn.Module, memory: Mapping[str, str]) -> dict[str, set[str]]:
    """Name in files of each tied parameter -> all names in files of it."""
    files = {other: name for name, other in memory.items()}
    return {
        files[name]: {files[n] for n in same} for same in names_of(module).values() for name in same if len(same) > 1
    }


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
