"""Faults that were found once, each in its smallest form."""

import dataclasses
import math
from unittest.mock import patch

import pytest
import torch
from torch import nn

from mergeline.errors import InputError
from mergeline.symmetry.derive import derive_symmetry
from mergeline.symmetry.layout import Units
from mergeline.symmetry.symmetry import Family, Symmetry, parameter_layout
from mergeline.symmetry.verify import require_sound
from tests.symmetry.program import permuted


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


class Attention(nn.Module):
    """Two heads that a constant mask tells apart; each projects with a matrix of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(2, 2, 3)) for _ in range(3))
        self.out = nn.Parameter(torch.randn(6))

    def forward(self, x):
        q, k, v = (torch.einsum("nti,hid->nhtd", x, w) for w in (self.q, self.k, self.v))
        mask = torch.arange(32, dtype=x.dtype).view(2, 4, 4).sin()
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return mixed.transpose(1, 2).flatten(2) @ self.out


def test_units_inside_of_fixed_ones_are_derived():
    """Heads do not move, yet the units in each of them do: the matrix of a head counts them along a fixed axis."""
    torch.manual_seed(0)
    module, inputs = Attention(), (torch.randn(2, 4, 2),)
    symmetry = derive_symmetry(module, inputs)
    assert symmetry.log10_order() >= math.log10(6 * 6) - 1e-9  # one order of queries and keys, one of values


class Function(nn.Module):
    """A function between two matrices."""

    def __init__(self, function, units: int = 4) -> None:
        super().__init__()
        self.first, self.function = nn.Linear(3, units), function
        self.last = nn.Linear(function(torch.zeros(1, units)).shape[1], 2)

    def forward(self, x):
        return self.last(self.function(self.first(x)))


@pytest.mark.parametrize(
    ("function", "order"),
    [
        (lambda t: torch.cat([t.narrow(1, 0, 2).cos(), t.narrow(1, -2, 2)], 1), 4),
        (torch.nn.functional.logsigmoid, 24),
        (lambda t: torch.tensordot(t, t.new_ones(4, 1), 1) * t, 24),
        (lambda t: t.clone().index_put_([t < 0], torch.tensor(0.0)), 24),
        (lambda t: torch.frexp(t)[0], 24),
    ],
    ids=["narrow from the end", "logsigmoid", "tensordot", "negative ones replaced", "frexp"],
)
def test_free_units_are_not_fixed(function, order):
    torch.manual_seed(0)
    symmetry = derive_symmetry(Function(function), (torch.randn(4, 3),))
    assert symmetry.log10_order() == pytest.approx(math.log10(order))


def test_activations_of_several_outputs_are_seen():
    torch.manual_seed(0)

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    assert derive_symmetry(Recurrent(), (torch.randn(4, 5, 2),)).log10_order() == pytest.approx(math.log10(6))


def test_parts_without_elements_are_joined():
    torch.manual_seed(0)

    def rotated(t):
        heads = t.view(len(t), 2, 2).transpose(1, 2)  # units that depend on the axis that is parted
        first, second, rest = heads[..., :1], heads[..., 1:2], heads[..., 2:]
        return torch.cat([first + second, second, rest], -1).flatten(1)

    symmetry = derive_symmetry(Function(rotated), (torch.randn(4, 3),))
    assert symmetry.log10_order() >= math.log10(2) - 1e-9


def test_numbers_in_the_code_do_not_make_the_trace_functional():
    """A tensor made of numbers brings `detach_`, which changes no element; making the trace functional is slow."""
    torch.manual_seed(0)
    module = Function(lambda t: t * torch.tensor([1.0, 1.0, 1.0, 1.0]))
    with patch.object(torch.export.ExportedProgram, "run_decompositions") as run_decompositions:
        derive_symmetry(module, (torch.randn(4, 3),))
    run_decompositions.assert_not_called()


def test_units_over_nothing_are_refused():
    """An edited text may take away the outer units of an axis and leave the inner ones that lie over them."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv1d(3, 4, 1), nn.Conv1d(4, 4, 1, groups=2), nn.ReLU(), nn.Conv1d(4, 3, 1))
    inputs = (torch.randn(2, 3, 5),)
    symmetry = derive_symmetry(module, inputs)
    weight = symmetry.parameters["1.weight"]
    broken = dataclasses.replace(weight, dims=(Units("free"), *weight.dims[1:]))
    families = {**symmetry.families, "free": Family("free", 4)}
    with pytest.raises(InputError, match=r"lie over"):
        dataclasses.replace(
            symmetry, families=families, parameters={**symmetry.parameters, "1.weight": broken}, sites=()
        ).verify(module, inputs)


def test_outputs_that_are_integers_are_compared():
    """A model that gives classes only would be proved by nothing."""
    torch.manual_seed(0)
    module = nn.Sequential(Function(torch.relu), _Largest())
    inputs = (torch.randn(64, 3),)
    wrong = Symmetry({"a": Family("a", 4)}, {"0.first.weight": parameter_layout(["a", "_3"], ["out", ""])})
    with pytest.raises(InputError):
        require_sound(wrong, module, inputs)
    assert derive_symmetry(module, inputs).log10_order() == pytest.approx(math.log10(24))


class _Largest(nn.Module):
    def forward(self, x):
        return x.argmax(1)


class Scaled(Function):
    """Units scaled by the root of a parameter, which must be positive."""

    def __init__(self) -> None:
        super().__init__(torch.relu)
        self.variance = nn.Parameter(torch.rand(4) + 0.1)

    def forward(self, x):
        return self.last(self.first(x) / self.variance.sqrt())


def test_parameters_that_must_be_positive_stay_so_in_the_proof():
    torch.manual_seed(0)
    symmetry = derive_symmetry(Scaled(), (torch.randn(4, 3),))
    assert symmetry.log10_order() == pytest.approx(math.log10(24))


def test_parameters_that_share_memory_in_another_shape_stay_tied():
    """Two parameters, one the transpose of the other: permuting one of them permutes the other."""
    torch.manual_seed(0)
    module, inputs = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(4, 3)
    module[3].weight = nn.Parameter(module[0].weight.t())
    assert module[3].weight.data_ptr() == module[0].weight.data_ptr()
    symmetry = derive_symmetry(module, (inputs,))
    before = module(inputs)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.load_state_dict(permuted(state, symmetry, symmetry.random_permutations(seed=0)))
    assert (module(inputs) - before).abs().max() <= 1e-5


def test_complex_parameters_are_left_complex():
    class Rotated(Function):
        def __init__(self) -> None:
            super().__init__(torch.relu)
            self.phase = nn.Parameter(torch.randn(4, dtype=torch.complex64))

        def forward(self, x):
            return self.last(torch.view_as_real(self.first(x) * self.phase).sum(-1))

    torch.manual_seed(0)
    module, inputs = Rotated(), (torch.randn(4, 3),)
    assert derive_symmetry(module, inputs).verify(module, inputs) <= 1e-6


@pytest.mark.parametrize("training", [True, False])
def test_outputs_that_differ_by_chance_are_said_to(training):
    torch.manual_seed(0)
    noise = torch.nn.functional.dropout if training else (lambda t: t + torch.rand_like(t))
    with pytest.raises(InputError, match=r"random|differ"):
        derive_symmetry(Function(noise), (torch.randn(4, 3),))


def test_a_module_that_keeps_a_result_is_derived():
    """A cached tensor of an earlier call belongs to a graph and cannot be copied with the module."""

    class Caching(Function):
        def forward(self, x):
            self.last_seen = super().forward(x)
            return self.last_seen

    torch.manual_seed(0)
    module, inputs = Caching(torch.relu), (torch.randn(4, 3),)
    module(*inputs)
    assert derive_symmetry(module, inputs).log10_order() == pytest.approx(math.log10(24))


def test_a_branch_that_starts_small_is_proved_too():
    """A LayerScale near zero hides what its branch does, unless the proof gives it another value."""

    class Branch(Function):
        def __init__(self) -> None:
            super().__init__(torch.relu)
            self.scale = nn.Parameter(torch.full((2,), 1e-6))
            self.beside = nn.Linear(3, 2)

        def forward(self, x):
            return self.beside(x) + self.scale * super().forward(x)

    torch.manual_seed(0)
    module, inputs = Branch(), (torch.randn(4, 3),)
    symmetry = derive_symmetry(module, inputs)
    bias = parameter_layout(["_4"], ["elt"])
    with pytest.raises(InputError, match="changes the output"):
        require_sound(
            dataclasses.replace(symmetry, parameters={**symmetry.parameters, "first.bias": bias}), module, inputs
        )


@pytest.mark.parametrize("kept", [torch.ones(4, dtype=torch.bool), torch.ones(4, dtype=torch.int8)])
def test_units_under_a_mask_of_the_state_dict_stay(kept):
    """In another checkpoint the mask may leave out certain units."""

    class Masked(Function):
        def __init__(self) -> None:
            super().__init__(torch.relu)
            self.register_buffer("kept", kept)

        def forward(self, x):
            return self.last(self.first(x) * self.kept)

    torch.manual_seed(0)
    assert derive_symmetry(Masked(), (torch.randn(4, 3),)).families == {}


def test_inputs_that_give_no_outputs_are_refused():
    torch.manual_seed(0)
    for verify in (True, False):
        with pytest.raises(InputError, match="an output without elements"):
            derive_symmetry(Function(torch.fft.fft), (torch.randn(0, 3),), verify=verify)


def test_a_mask_over_several_axes_fixes_them_all():
    class Masked(Function):
        def __init__(self) -> None:
            super().__init__(torch.relu)
            self.register_buffer("mask", torch.tensor([[True, False, True, False]] * 4), persistent=False)

        def forward(self, x):
            hidden = self.first(x)
            hidden[self.mask] = hidden[0, 0]
            return self.last(hidden)

    torch.manual_seed(0)
    assert derive_symmetry(Masked(), (torch.randn(4, 3),)).families == {}


def test_a_parameter_without_a_name_of_its_own_names_its_family():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_parameter("_weight", nn.Parameter(torch.randn(4, 3)))
            self.last = nn.Linear(4, 2)

        def forward(self, x):
            return self.last((x @ self._weight.T).relu())

    torch.manual_seed(0)
    assert derive_symmetry(Bare(), (torch.randn(4, 3),)).sizes == {"_weight": 4}
