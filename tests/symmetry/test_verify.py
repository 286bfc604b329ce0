"""The proof itself: faults that hide when everything moves at once, and what counts as an output."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from mergeline.errors import InputError
from mergeline.symmetry.derive import derive_symmetry
from mergeline.symmetry.layout import Units
from mergeline.symmetry.symmetry import ParameterLayout, Symmetry
from mergeline.symmetry.units import Family
from mergeline.symmetry.verify import output_change, require_sound


class Differences(nn.Module):
    """Every exchange of a pair changes the sign of the output: an even number of them does not show."""

    def __init__(self, pairs: int):
        super().__init__()
        self.pairs = nn.ParameterList(torch.randn(2) for _ in range(pairs))

    def forward(self, x):
        for pair in self.pairs:
            x = x * (pair[0] - pair[1])
        return x


@pytest.mark.parametrize("pairs", [1, 2, 3, 4, 7])
def test_faults_that_undo_each_other_are_found(pairs):
    families = {f"pair{number}": Family(f"pair{number}", 2, ()) for number in range(pairs)}
    layouts = {f"pairs.{number}": ParameterLayout((Units(f"pair{number}"),), ("",), ()) for number in range(pairs)}
    wrong = Symmetry(families, layouts)
    with pytest.raises(InputError) as refusal:
        require_sound(wrong, Differences(pairs), torch.randn(3))
    assert all(f"'{name}'" in str(refusal.value) for name in families)
    assert output_change(wrong, Differences(pairs), torch.randn(3)) > 1
    assert derive_symmetry(Differences(pairs), torch.randn(3)).families == {}


class Cache:
    """What a language model keeps for its next call; torch.export does not know the class."""

    def __init__(self, keys: Tensor):
        self.keys = keys


@dataclass
class Answer:
    logits: Tensor
    cache: Cache


class Answering(nn.Module):
    """Returns a data class with a cache in it."""

    def __init__(self, outputs=Answer):
        super().__init__()
        self.up, self.down, self.outputs = nn.Linear(3, 5), nn.Linear(5, 2), outputs

    def forward(self, x):
        hidden = self.up(x).relu()
        return self.outputs(self.down(hidden), Cache(hidden))


def test_a_cache_beside_the_outputs_is_no_output():
    module = Answering()
    symmetry = derive_symmetry(module, torch.randn(4, 3))
    assert [family.size for family in symmetry.families.values()] == [5]
    assert isinstance(module(torch.randn(1, 3)), Answer)  # the module is as before


@pytest.mark.parametrize(
    "outputs",
    [
        lambda logits, cache: (logits, cache),
        lambda logits, cache: {"logits": logits, "cache": cache},
        lambda logits, cache: [{"logits": (logits,)}, [cache]],
    ],
    ids=["sequence", "mapping", "nested"],
)
def test_outputs_in_other_containers_are_seen(outputs):
    symmetry = derive_symmetry(Answering(outputs), torch.randn(4, 3))
    assert [family.size for family in symmetry.families.values()] == [5]


def test_a_module_without_outputs_proves_nothing():
    with pytest.raises(InputError, match="returns no tensors"):
        derive_symmetry(Answering(lambda _, cache: cache), torch.randn(4, 3))
