"""The derived symmetry of small reference networks: tracing takes a second, so equal networks share one."""

import torch

from mergeline.symmetry.derive import derive_symmetry

_FOUND = {}


def symmetry_of(model):
    """The symmetry of a reference network; networks of one architecture have one."""
    key = str(model)
    if key not in _FOUND:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(3, model.conv1.in_channels, 12, 12, generator=generator)
        _FOUND[key] = derive_symmetry(model, (inputs,))
    return _FOUND[key]
