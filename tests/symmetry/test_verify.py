"""The proof itself: faults that hide when everything moves at once, and what counts as an output."""

from dataclasses import dataclass
from types import SimpleNamespace

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


class Actor(nn.Module):
    """Returns a value, and a distribution: an object whose tensors torch.export does not see."""

    def __init__(self, in_place: bool = False):
        super().__init__()
        self.trunk, self.value, self.in_place = nn.Linear(3, 5), nn.Linear(5, 1), in_place
        self.policy, self.scale = nn.Linear(5, 4), nn.Parameter(torch.ones(4))

    def forward(self, x):
        hidden = self.trunk(x).tanh()
        if self.in_place:
            hidden[:, 0] = hidden[:, 0] * 2
        weight = self.policy.weight * torch.ones(4, 1)
        return self.value(hidden), SimpleNamespace(scores=nn.functional.linear(hidden.relu(), weight) * self.scale)


def test_weights_behind_an_object_of_an_unknown_class_move_with_the_others():
    symmetry = derive_symmetry(Actor(), torch.randn(4, 3))
    assert symmetry.sizes == {"trunk": 5}
    assert [str(dim) for dim in symmetry.parameters["policy.weight"].dims] == ["_4", "trunk"]
    assert "policy.bias" not in symmetry.parameters


def test_weights_behind_such_an_object_that_the_trace_would_lose_are_refused():
    with pytest.raises(InputError, match=r"symmetry of Actor: 'policy\.weight' is read, but for no tensor"):
        derive_symmetry(Actor(in_place=True), torch.randn(4, 3))


def test_a_module_without_outputs_proves_nothing():
    with pytest.raises(InputError, match="returns no tensors"):
        derive_symmetry(Answering(lambda _, cache: cache), torch.randn(4, 3))
