"""Running a module to measure it, and leaving it as it was."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mergeline.errors import InputError

_UNFIT = re.compile(r"to have \d+ channels|shapes cannot be multiplied|must match the (existing )?size")
"""What PyTorch says where inputs are not as large as weights expect."""


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Every layer in eval mode (dropout off, BatchNorm by its running statistics); afterwards each as it was."""
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def on_device(inputs: Any, module: nn.Module) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Positional and named inputs of a call, on the module's device. inputs: a tensor, or a mapping of named ones."""
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    if isinstance(inputs, Tensor):
        return (inputs.to(device),), {}
    return (), {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}


def run(module: nn.Module, batch: Any) -> None:
    """One call. batch: the input, a tuple whose first item is the input, or a mapping of named inputs."""
    positional, named = on_device(inputs_of(batch), module)
    with unfit_inputs_named(*positional, *named.values()):
        module(*positional, **named)


@contextmanager
def unfit_inputs_named(*inputs: Any) -> Iterator[None]:
    """Raise InputError with the shapes of a batch of inputs where a module, called in the block, cannot take them."""
    try:
        yield
    except RuntimeError as fault:
        if not _UNFIT.search(str(fault)):
            raise
        shapes = ", ".join(str(list(x.shape)) for x in inputs if isinstance(x, Tensor))
        raise InputError(
            f"the model cannot take inputs of shape {shapes} ({str(fault).splitlines()[0]}); is that the data it was "
            "trained on, read as it was? A data set's resize, crop, mean and std say how pictures are read"
        ) from fault


def inputs_of(batch: Any) -> Any:
    """What a module is called with. batch: the input, a tuple whose first item is the input, or a mapping of inputs."""
    return batch[0] if isinstance(batch, tuple | list) else batch


def names_of(module: nn.Module) -> dict[int, list[str]]:
    """id of each parameter -> all names that it has: tied parameters have several."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def mean_of(measured: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of what was measured on several sets of data: float32 by name, summed in float64."""
    first = measured[0]
    return {
        name: torch.stack([one[name] for one in measured]).mean(dim=0, dtype=torch.float64).float() for name in first
    }
