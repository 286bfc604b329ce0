"""Deriving: what goes in, what comes out, and every way in which it can go wrong."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from mergeline.errors import InputError
from mergeline.symmetry.derive import derive_symmetry
from mergeline.symmetry.rules import table
from mergeline.symmetry.symmetry import Symmetry


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))


INPUTS = (torch.randn(6, 3, generator=torch.Generator().manual_seed(1)),)


def described(symmetry):
    return {name: [str(dim) for dim in layout.dims] for name, layout in symmetry.parameters.items()}


def test_a_symmetry_reads_like_the_module():
    symmetry = derive_symmetry(mlp(), INPUTS)
    assert symmetry.sizes == {"0": 5, "2": 4}
    assert described(symmetry) == {
        "0.weight": ["0", "_3"],
        "0.bias": ["0"],
        "2.weight": ["2", "0"],
        "2.bias": ["2"],
        "4.weight": ["_2", "2"],
    }
    assert symmetry.parameters["2.weight"].roles == ("out", "in")
    assert symmetry.parameters["0.bias"].roles == ("elt",)
    assert [(site.group, site.node, site.kind, site.at) for site in symmetry.sites if site.group == "0"] == [
        ("0", "0.linear", "def", "0.linear"),
        ("0", "1.relu", "use", "2.linear"),
    ]


def test_notes_say_why_axes_are_fixed_and_that_it_was_verified():
    notes = derive_symmetry(mlp(), INPUTS).notes
    assert notes["fixed: meets a fixed axis (0.linear)"] == "0.weight[1]"
    assert notes["fixed: reaches an output of the model"] == "4.weight[0], 4.bias[0]"
    assert notes["verified"].startswith("yes")
    assert derive_symmetry(mlp(), INPUTS, verify=False).notes["verified"].startswith("no")


class TwoHeads(nn.Module):
    """The second head is for training only."""

    def __init__(self):
        super().__init__()
        self.trunk, self.norm = nn.Linear(3, 5), nn.BatchNorm1d(5)
        self.main, self.auxiliary = nn.Linear(5, 2), nn.Linear(5, 4)

    def forward(self, x):
        hidden = self.norm(self.trunk(x)).relu()
        return (self.main(hidden), self.auxiliary(hidden)) if self.training else self.main(hidden)


def test_tensors_that_the_trace_does_not_read_are_noted():
    assert derive_symmetry(TwoHeads(), INPUTS).notes["not traced"].startswith("auxiliary.weight, auxiliary.bias: ")
    for module, inputs in ((mlp(), INPUTS), (Tied(), (torch.randint(7, (3, 5)),))):
        assert "not traced" not in derive_symmetry(module, inputs).notes


def test_a_trace_for_one_batch_size_is_noted():
    assert "length 1 " in derive_symmetry(mlp(), torch.randn(1, 3)).notes["batch"]
    assert "batch" not in derive_symmetry(mlp(), INPUTS).notes


@pytest.mark.parametrize("fused", [True, False])
def test_the_module_is_left_as_it_was(fused):
    torch.backends.mha.set_fastpath_enabled(fused)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)).train()
    module[1].eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    derive_symmetry(module, INPUTS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert [child.training for child in module] == [True, False, True, True]
    assert module.training
    assert torch.backends.mha.get_fastpath_enabled() == fused


class Named(nn.Module):
    """Takes its inputs by name, and gives a mapping."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, left, right, scale=1.0):
        return {"logits": self.out((self.left(left) + scale * self.right(right)).relu()), "index": left.argmax(1)}


def test_inputs_can_be_a_tensor_positions_or_names():
    inputs = {"left": torch.randn(5, 3), "right": torch.randn(5, 2), "scale": 0.5}
    by_name = derive_symmetry(Named(), inputs)
    assert by_name.groups.keys() == {"left"}
    assert derive_symmetry(Named(), tuple(inputs.values())).parameters == by_name.parameters
    assert derive_symmetry(mlp(), INPUTS[0]) == derive_symmetry(mlp(), INPUTS)


def test_one_example_or_many_give_the_same():
    assert derive_symmetry(mlp(), torch.randn(1, 3)).parameters == derive_symmetry(mlp(), INPUTS).parameters


def test_on_the_meta_device_nothing_is_verified_and_it_says_so():
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    symmetry = derive_symmetry(module, INPUTS)
    assert symmetry.sizes == {"0": 5}
    assert symmetry.notes["verified"] == "no: the module is on the meta device"
    with pytest.raises(InputError, match="no numbers on the meta device"):
        symmetry.verify(module, INPUTS)


class Tied(nn.Module):
    """The table that makes units of tokens also reads them."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        return self.head(self.table(tokens).tanh())


def test_tied_tensors_are_one_with_several_names():
    symmetry = derive_symmetry(Tied(), (torch.randint(7, (3, 5)),))
    (layout,) = symmetry.parameters.values()
    assert layout.tied == ("head.weight",)
    assert layout.roles == ("", "in/out")


class Transformed(nn.Module):
    """Its hidden units go through an operation that has no rule."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.second(torch.fft.fft(self.first(x)).real)


def test_an_operation_without_a_rule_freezes_its_operands_and_is_reported():
    symmetry = derive_symmetry(Transformed(), INPUTS)
    assert symmetry.groups == {}
    (note,) = (text for name, text in symmetry.notes.items() if name.startswith("no rule: fft"))
    assert "at fft_fft_" in note or "at fft" in note
    assert "@rule('fft" in note
    assert any("no rule for the operation fft" in name for name in symmetry.notes)


def test_inputs_of_a_wrong_width_are_refused_in_one_sentence():
    """In a fresh process: the test runner takes the place of torch's own log handlers."""
    code = (
        "import torch; from mergeline.symmetry.derive import derive_symmetry\n"
        "try: derive_symmetry(torch.nn.Sequential(torch.nn.Linear(3, 4)), torch.randn(4, 7))\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "must have same reduction dim" in done.stdout
    assert done.stderr == ""


def test_a_value_that_becomes_a_number_of_the_code_is_fixed():
    class Steered(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            hidden = self.first(x)
            return self.second(hidden * hidden[0, 1].item())

    symmetry = derive_symmetry(Steered(), INPUTS)
    assert described(symmetry)["first.bias"] == ["_2 + first"]


class Mixing(nn.Module):
    """Sums the hidden units up in order: none can move."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.second(self.first(x).softmax(1).cumsum(1))


def test_a_wrong_rule_is_caught_by_the_proof_which_names_everything(monkeypatch):
    monkeypatch.setitem(table._RULES, "cumsum", table.Rule.of(lambda call, x: x))
    with pytest.raises(InputError) as fault:
        derive_symmetry(Mixing(), INPUTS)
    message = str(fault.value)
    assert message.startswith("symmetry of Mixing: not a symmetry of the model: 'first' changes the output by")
    assert "first.bias, first.weight, second.weight" in message
    assert "second.linear" in message


def test_forms_of_an_operation_that_its_rule_does_not_know_freeze():
    class Compared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.second(self.first(x).diff(dim=0, prepend=self.first(2 * x)[:1]))

    symmetry = derive_symmetry(Compared(), INPUTS)
    assert symmetry.groups == {}
    assert "a form of it with the argument prepend at diff" in symmetry.notes["no rule: diff"]


def test_a_rule_that_gives_the_wrong_shape_freezes(monkeypatch):
    monkeypatch.setitem(table._RULES, "sum", table.Rule.of(lambda call, x: x))

    class Summed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 4)

        def forward(self, x):
            return self.first(x).sum(1)

    symmetry = derive_symmetry(Summed(), INPUTS)
    assert symmetry.groups == {}
    assert "its rule gives the shape [6, 4] for [6]" in symmetry.notes["no rule: sum"]


def test_what_cannot_be_traced_is_refused_with_the_reason():
    class Untraceable(nn.Module):
        def forward(self, x):
            return x[: int(x.sum())] if x.sum() > 0 else x.tolist()

    with pytest.raises(InputError, match=r"symmetry of Untraceable: torch\.export cannot trace it"):
        derive_symmetry(Untraceable(), INPUTS)


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="cannot trace it with these inputs"):
        derive_symmetry(mlp(), (torch.randn(2, 7),))


def test_outputs_that_are_not_finite_prove_nothing():
    class Infinite(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.second(self.first(x).relu() / 0)

    with pytest.raises(InputError, match="NaN or Inf on random parameters"):
        derive_symmetry(Infinite(), INPUTS)


def test_values_changed_in_place_through_a_view_are_followed():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            hidden = self.first(x)
            hidden[:, :2].mul_(torch.tensor([1.0, 3.0]))
            return self.second(hidden.relu_())

    symmetry = derive_symmetry(InPlace(), INPUTS)
    assert described(symmetry)["second.weight"] == ["_2", "_2 + first"]


def test_a_dtype_that_the_code_insists_on_is_respected():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.second(self.first(x).float() @ torch.eye(4))

    assert derive_symmetry(Single(), INPUTS).notes["verified"].startswith("yes")


def test_a_derived_symmetry_survives_its_text():
    for symmetry in (derive_symmetry(mlp(), INPUTS), derive_symmetry(Tied(), (torch.randint(7, (3, 5)),))):
        assert Symmetry.from_yaml(symmetry.to_yaml()) == symmetry


def test_names_that_mean_something_in_layouts_are_avoided():
    class Oddly(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.ParameterDict({"a + b": torch.randn(4, 3)})
            self.register_parameter("_4", nn.Parameter(torch.randn(5, 4)))
            self.register_parameter("last", nn.Parameter(torch.randn(2, 5)))

        def forward(self, x):
            return (self.last @ torch.tanh(self._4 @ torch.tanh(self.weights["a + b"] @ x.T))).T

    symmetry = derive_symmetry(Oddly(), INPUTS)
    assert symmetry.sizes == {"units_4": 5, "weights.a---b": 4}
    assert Symmetry.from_yaml(symmetry.to_yaml()) == symmetry


def test_state_that_is_no_tensor_is_left_alone():
    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

        def set_extra_state(self, state):
            assert state == {"calls": 3}

    module = nn.Sequential(Counting(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert derive_symmetry(module, INPUTS).sizes == {"0": 4}
