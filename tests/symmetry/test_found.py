"""Faults that were found once, each in its smallest form."""

import pytest
import torch
from torch import nn

from mergeline.errors import InputError
from mergeline.symmetry.symmetry import Family, Symmetry, parameter_layout
from mergeline.symmetry.verify import require_sound


def test_two_families_of_two_units_that_should_be_one_are_caught():
    """There is one derangement of two units, so permuting all families at once moves both alike by chance."""
    torch.manual_seed(0)
    module, inputs = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 3)), (torch.randn(4, 3),)
    symmetry = Symmetry(
        {"written": Family("written", 2), "read": Family("read", 2)},
        {
            "0.weight": parameter_layout(["written", "_3"], ["out", ""]),
            "0.bias": parameter_layout(["written"], ["elt"]),
            "2.weight": parameter_layout(["_3", "read"], ["", "in"]),
        },
    )
    assert symmetry.verify(module, inputs) > 1e-2
    with pytest.raises(InputError, match=r"'written' changes the output.*'read' changes the output"):
        require_sound(symmetry, module, inputs)
