"""Which tensors share their statistics: the whole model, a layer, or a tensor alone."""

from collections.abc import Mapping
from typing import Any

from mergeline.merging.registry import Granularity

MODEL = "model"


def group_of(name: str, granularity: Granularity, options: Mapping[str, Any]) -> str:
    """Name of the group of a tensor.

    options: those of the statistics that patterns set for this tensor to something else than for the rest; tensors
    with different ones are in different groups.
    """
    group = {"model": MODEL, "layer": layer_of(name), "tensor": name}[granularity]
    settings = ", ".join(f"{key}={value}" for key, value in sorted(options.items()))
    return f"{group} ({settings})" if settings else group


def layer_of(name: str) -> str:
    """The block that a tensor belongs to.

    `model.layers.3.mlp.weight` -> `model.layers.3`, `layer1.0.bn.bias` -> `layer1.0`, `head.weight` -> `head`.
    """
    parts = name.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
    return name.rpartition(".")[0] or name if number is None else ".".join(parts[: number + 1])
