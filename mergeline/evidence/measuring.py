"""Running a module to measure it, and leaving it as it was."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


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
    module(*positional, **named)


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
