"""What the proof listens to: large constants, infinities, and outputs that hardly respond hide no fault from it."""

import dataclasses
import threading

import pytest
import torch
from torch import nn

from mergeline.errors import InputError
from mergeline.symmetry.change import relative_change, scale_of
from mergeline.symmetry.derive import derive_symmetry
from mergeline.symmetry.layout import parse
from mergeline.symmetry.verify import output_change, require_sound

INPUTS = (torch.randn(6, 3, generator=torch.Generator().manual_seed(1)),)


class Answering(nn.Module):
    """A hidden layer of four units, and a function that makes the answer of inputs and outputs."""

    def __init__(self, answer, outputs=2):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.answer = nn.Linear(3, 4), nn.Linear(4, outputs), answer

    def forward(self, x):
        return self.answer(x, self.last(self.first(x).relu()))


def without_bias(symmetry):
    """The same, but for a bias that is said to stay."""
    bias = dataclasses.replace(symmetry.parameters["first.bias"], dims=(parse("_4"),))
    return dataclasses.replace(symmetry, parameters={**symmetry.parameters, "first.bias": bias})


def masked(value):
    return lambda x, y: y.masked_fill(torch.tensor([[False, True]]), value)


def filtered(x, y):
    """As language models choose their next word: all but the largest are infinitely unlikely."""
    return y.masked_fill(y < y.amax(1, keepdim=True), float("-inf"))


def barely(x, y):
    return x.sum(1, keepdim=True) + 1e-6 * y


@pytest.mark.parametrize(
    ("answer", "outputs"),
    [
        (masked(-1e9), 2),
        (masked(float("-inf")), 2),
        (masked(float("nan")), 2),
        (filtered, 3),
        (barely, 2),
        (lambda x, y: y.relu(), 1),
        (lambda x, y: y.argmax(1), 3),
        (lambda x, y: (y > 0).float(), 5),
        (lambda x, y: [y, 1e9 * x], 2),
    ],
    ids=["-1e9", "-inf", "nan", "filtered", "faint", "relu", "classes", "signs", "beside"],
)
def test_faults_are_seen_through_whatever_the_model_answers(answer, outputs):
    module = Answering(answer, outputs)
    symmetry = derive_symmetry(module, INPUTS)
    assert symmetry.sizes == {"first": 4}
    assert symmetry.notes["verified"].startswith("yes")
    assert output_change(symmetry, module, INPUTS) < 1e-6
    with pytest.raises(InputError, match="'first' changes the output"):
        require_sound(without_bias(symmetry), module, INPUTS)


@pytest.mark.parametrize(
    "answer",
    [lambda x, y: torch.cat([x, 1e-12 * y], 1), lambda x, y: 0 * y, lambda x, y: (y > 1e6).float()],
    ids=["drowned", "nothing", "never"],
)
def test_what_the_outputs_do_not_show_is_not_called_verified(answer):
    module = Answering(answer)
    symmetry = derive_symmetry(module, INPUTS)
    assert require_sound(symmetry, module, INPUTS) == ["first"]
    assert symmetry.notes["verified"].startswith("in part: ")
    assert "some weights of first" in symmetry.notes["verified"]


def test_what_becomes_nan_has_changed():
    before = torch.tensor([1.0, 2.0, float("nan"), float("inf")], dtype=torch.float64)
    scale = scale_of(before, before + 1)
    assert relative_change(before, before.clone(), scale) == 0
    for after in ([float("nan"), 2.0], [1.0, float("-inf")]):
        changed = torch.cat([torch.tensor(after, dtype=torch.float64), before[2:]])
        assert relative_change(before, changed, scale) == float("inf")
    assert relative_change(before, before.nan_to_num(), scale) == float("inf")


def test_outputs_that_overflow_prove_nothing():
    with pytest.raises(InputError, match="NaN or Inf on random parameters"):
        derive_symmetry(Answering(lambda x, y: y * float("inf") - y.abs() * float("inf")), INPUTS)


class Particular(Answering):
    """A module with something that makes it hard to run a copy in another dtype."""

    def __init__(self, dtype=torch.float32):
        super().__init__(lambda x, y: y)
        self.dtype = dtype
        self.register_buffer("signs", torch.ones(1, dtype=torch.int64).expand(4))
        self.lock = threading.Lock()

    def forward(self, x):
        assert x.dtype == self.dtype
        with self.lock:
            hidden = self.first(x).to(self.dtype)
        return self.last(hidden.relu())


def test_modules_that_are_hard_to_copy_are_proved():
    module = Particular()
    assert derive_symmetry(module, INPUTS).notes["verified"].startswith("yes")
    assert module.lock is not None


def test_a_module_that_runs_in_its_own_dtype_only_is_proved_or_refused_in_one_sentence():
    module, inputs = Particular(torch.bfloat16).bfloat16(), (INPUTS[0].bfloat16(),)
    symmetry = derive_symmetry(module, inputs, verify=False)
    assert symmetry.sizes == {"first": 4}
    require_sound(symmetry, module, inputs)
    module = Particular(torch.bfloat16)  # neither runs with the other
    symmetry = dataclasses.replace(symmetry, sites=())
    with pytest.raises(InputError, match="symmetry of Particular: it does not run with random parameters: "):
        require_sound(symmetry, module, inputs)
