"""The layout language."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergeline.errors import InputError
from mergeline.symmetry.layout import Blocks, Fixed, Segments, Term, Units, factors, parse, terms, width

SIZES = {"a": 2, "b": 3, "heads": 4}
blocks = st.recursive(
    st.one_of(st.integers(1, 9).map(Fixed), st.sampled_from(list(SIZES)).map(Units)),
    lambda inner: st.builds(Blocks, st.sampled_from(list(SIZES)), inner),
    max_leaves=4,
)
layouts = st.one_of(blocks, st.lists(blocks, min_size=2, max_size=4).map(lambda parts: Segments(tuple(parts))))


def positions(term):
    """All positions of a term, [units..., width]."""
    grid = torch.arange(term.width) + term.start
    for family, stride in reversed(list(zip(term.path, term.strides, strict=True))):
        grid = torch.arange(SIZES[family]).reshape(-1, *[1] * grid.ndim) * stride + grid
    return grid


@given(layouts)
def test_text_and_layout_say_the_same(layout):
    assert parse(str(layout)) == layout


@given(layouts)
def test_the_terms_are_positions_of_the_axis_each_at_most_once(layout):
    found = [p for term in terms(layout, SIZES) for p in positions(term).flatten().tolist()]
    assert len(found) == len(set(found))
    assert set(found) <= set(range(width(layout, SIZES)))


def test_width_and_terms_of_a_fused_projection():
    layout = parse("heads * a + heads * a + heads * b + _5")
    assert width(layout, SIZES) == 8 + 8 + 12 + 5
    assert list(terms(layout, SIZES)) == [
        Term(("heads", "a"), 0, (2, 1)),
        Term(("heads", "a"), 8, (2, 1)),
        Term(("heads", "b"), 16, (3, 1)),
    ]


def test_units_with_several_parts_inside_are_found_in_each():
    layout = parse("heads * (a + b + _2)")
    assert list(terms(layout, SIZES)) == [
        Term(("heads", "a"), 0, (7, 1)),
        Term(("heads", "b"), 2, (7, 1)),
        Term(("heads",), 5, (7,), width=2),
    ]


def test_factors_of_a_product_and_none_of_a_sum():
    assert factors(parse("heads * a * _3")) == [Units("heads"), Units("a"), Fixed(3)]
    assert factors(parse("heads * (a + b)")) is None


def test_brackets_nest():
    assert parse("heads * (a + _1)") == Blocks("heads", Segments((Units("a"), Fixed(1))))


@pytest.mark.parametrize("text", ["", "a +", "* a", "(a", "a b", "_3 * a", "(" * 9999 + "a", "a * " * 9999 + "a"])
def test_nonsense_is_refused(text):
    with pytest.raises(InputError, match="layout"):
        parse(text)
