"""Modules that are run to be measured."""

import re

import pytest
import torch
from torch import nn

from mergeline.errors import InputError
from mergeline.evidence.measuring import run
from mergeline.models.resnet import resnet


class PositionEmbedding(nn.Module):
    """Adds a vector to each of eight places."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.zeros(8, 4)


@pytest.mark.parametrize(
    ("module", "inputs", "said"),
    [
        (resnet(blocks=[1, 1, 1], width=8, outputs=4), torch.zeros(2, 3, 8, 8), "to have 1 channels, but got 3"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), torch.zeros(2, 1, 9, 9), "shapes cannot be multiplied"),
        (PositionEmbedding(), torch.zeros(2, 9, 4), "must match the size"),
    ],
)
def test_inputs_that_a_module_cannot_take_are_named_with_their_shape(
    module: nn.Module, inputs: torch.Tensor, said: str
) -> None:
    shape = re.escape(str(list(inputs.shape)))
    with pytest.raises(InputError, match=f"^the model cannot take inputs of shape {shape} .*{said}.*resize, crop"):
        run(module.eval(), (inputs, torch.zeros(2)))


def test_faults_of_the_module_s_own_code_stay_what_they_are() -> None:
    class Faulty(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("not made yet")

    with pytest.raises(RuntimeError, match=r"^not made yet$"):
        run(Faulty(), torch.zeros(2))
