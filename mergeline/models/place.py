"""A module on the device that it is to answer on."""

from __future__ import annotations

import torch
from torch import nn

from mergeline.errors import InputError


def place(module: nn.Module, device: str) -> nn.Module:
    """The module on "cpu", "cuda" or "cuda:1", where it gives the same answers every time.

    From then on, in the whole process: PyTorch's fused encoder layer is off, because a trace in another thread turns it
    off, and answers would depend on whether there is one. On CUDA, cuDNN is held to deterministic kernels in full
    float32: by default its convolutions round to TF32, and which kernel they take depends on a race.
    Raises InputError where there is no such device.
    """
    torch.backends.mha.set_fastpath_enabled(False)
    if device == "cpu":
        return module
    if missing := missing_device(device):
        raise InputError(missing)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return module.to(device)


def missing_device(device: str) -> str:
    """What is wrong with `evaluation.device` here: a sentence where there is no such device, "" where there is."""
    count, number = torch.cuda.device_count(), torch.device(device).index or 0
    if device == "cpu" or number < count:
        return ""
    there = f"PyTorch sees {count} CUDA device{'s' * (count != 1)} here" if count else "PyTorch sees no CUDA here"
    return f"evaluation.device: there is no {device} ({there}); write cpu, or run where there is one"
