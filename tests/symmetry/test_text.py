"""A symmetry as text: what people may edit, and what they are told where they err."""

import pytest
import torch
from torch import nn

from mergeline.errors import InputError
from mergeline.symmetry.derive import derive_symmetry
from mergeline.symmetry.symmetry import Symmetry
from mergeline.symmetry.text import EDITED, read_symmetry
from mergeline.symmetry.verify import proved, require_sound

INPUTS = (torch.randn(6, 3, generator=torch.Generator().manual_seed(1)),)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))


@pytest.fixture
def text(model):
    return derive_symmetry(model, INPUTS).to_yaml()


def test_a_family_is_restricted_as_the_documentation_says(model, text):
    """Write `_5` for an axis on every tensor of the family; its sites go with it."""
    edited = text.replace("dims: ['0', _3]", "dims: [_5, _3]").replace("dims: ['0']", "dims: [_5]")
    symmetry = Symmetry.from_yaml(edited.replace("dims: ['2', '0']", "dims: ['2', _5]"))
    assert symmetry.sizes == {"2": 4}
    assert {site.group for site in symmetry.sites} == {"2"}
    assert require_sound(symmetry, model, INPUTS) == []


def test_an_edited_text_is_not_verified_any_more(model, text):
    assert Symmetry.from_yaml(text).notes["verified"].startswith("yes")
    assert Symmetry.from_yaml(f"# my own\n{text}").notes["verified"].startswith("yes")
    edited = Symmetry.from_yaml(text.replace("roles: [elt]", "roles: ['']"))
    assert edited.notes["verified"] == EDITED
    assert proved(edited, model, INPUTS).notes["verified"].startswith("yes")


def test_names_that_look_like_numbers_need_no_quotes(text):
    assert Symmetry.from_yaml(text.replace("'0'", "0").replace("'2'", "2")).sizes == {"0": 5, "2": 4}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{size: 5}", "{size: -5}", r"mine\.yaml: families\.0\.size: Input should be greater than 0"),
        ("{size: 5}", "{size: 5.5}", r"mine\.yaml: families\.0\.size: "),
        ("{size: 5}", "{size: 5, ovre: ['2']}", r"families\.0\.ovre: unknown key; did you mean 'over'"),
        ("{size: 5}", "{over: ['2']}", r"families\.0\.size: is missing"),
        ("{size: 5}", "{size: 5, over: [ghost]}", r"mine\.yaml: family '0' lies over 'ghost'"),
        ("roles: [out, '']", "roles: [out]", r"parameters\.0\.weight: 2 dims, but 1 roles"),
        ("roles: [out, '']", "roles: [write, '']", r"parameters\.0\.weight\.roles\.0: Input should be 'out'"),
        ("dims: ['0', _3]", "dims: '0'", r"parameters\.0\.weight\.dims: Input should be a valid list"),
        ("dims: ['0', _3]", "dims: ['0 *', _3]", r"mine\.yaml: parameters\.0\.weight: layout '0 \*'"),
        ("dims: ['0', _3]", f"dims: ['{'(' * 5000}', _3]", r"nested more than"),
        ("use: 2.linear", "used: 2.linear", r"sites\.\d\.used: unknown key; did you mean 'use'"),
        ("'2': {size: 4}", "'0': {size: 4}", r"mine\.yaml: line 3, column 3: the key '0' stands twice"),
        ("{size: 5}", "{size: 5", r"mine\.yaml: line 3, column \d+: "),
        ("families:", "familie:", r"mine\.yaml: familie: unknown key; did you mean 'families'"),
        ("families:", "[" * 5000, r"mine\.yaml: "),
        ("families:", "\x07:", r"mine\.yaml: not YAML"),
    ],
)  # fmt: skip
def test_faults_are_told_with_their_place_and_cure(text, old, new, message):
    assert old in text
    with pytest.raises(InputError, match=message):
        Symmetry.from_yaml(text.replace(old, new, 1), "mine.yaml")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "symmetry.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"symmetry\.yaml: not a text file"):
        read_symmetry(tmp_path / "symmetry.yaml")


def test_tensors_that_the_model_does_not_have_are_named(model, text):
    with pytest.raises(InputError, match=r"names the tensor '2\.wieght', which .* did you mean '2\.weight'"):
        require_sound(Symmetry.from_yaml(text.replace("2.weight:", "2.wieght:")), model, INPUTS)
    with pytest.raises(InputError, match=r"dims for '0\.weight' are \[6, 3\] long.*shape \[5, 3\]"):
        require_sound(Symmetry.from_yaml(text.replace("{size: 5}", "{size: 6}")), model, INPUTS)
