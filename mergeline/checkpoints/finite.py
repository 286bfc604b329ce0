"""Whether tensors hold NaN or infinity, without masks: those cost forty times what a sum does."""

import math

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether a floating or complex tensor holds neither NaN nor infinity.

    A finite sum says so; where the sum is not finite it may only have overflowed, and the extremes tell.
    """
    values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    values = values.float() if values.element_size() == 1 else values  # torch cannot add all 8-bit floats
    if math.isfinite(values.sum(dtype=torch.float32 if values.element_size() == 2 else None).item()):
        return True
    return bool(torch.isfinite(torch.stack(values.aminmax())).all())


def count_not_finite(tensor: Tensor) -> int:
    """How many values are NaN or infinite: for a message, when some are."""
    checkable = tensor.float() if tensor.element_size() == 1 else tensor
    return tensor.numel() - int(torch.isfinite(checkable).sum())
