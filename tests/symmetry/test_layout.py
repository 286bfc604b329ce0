"""The layout language."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeline.errors import InputError
from mergeline.symmetry.layout import Blocks, Fixed, Segments, Term, Units, parse, terms, width

SIZES = {"a": 2, "b": 3, "heads": 4}
blocks = st.recursive(
    st.one_of(st.integers(1, 9).map(Fixed), st.sampled_from(list(SIZES)).map(Units)),
    lambda inner: st.builds(Blocks, st.sampled_from(list(SIZES)), inner),
    max_leaves=4,
)
layouts = st.one_of(blocks, st.lists(blocks, min_size=2, max_size=4).map(lambda parts: Segments(tuple(parts))))


@given(layouts)
def test_text_and_layout_say_the_same(layout):
    assert parse(str(layout)) == layout


def test_width_and_terms_of_a_fused_projection():
    layout = parse("heads * a + heads * a + heads * b + _5")
    assert width(layout, SIZES) == 8 + 8 + 12 + 5
    assert list(terms(layout, SIZES)) == [
        Term(("heads", "a"), 0, 8),
        Term(("heads", "a"), 8, 8),
        Term(("heads", "b"), 16, 12),
    ]


def test_brackets_nest():
    assert parse("heads * (a + _1)") == Blocks("heads", Segments((Units("a"), Fixed(1))))


@pytest.mark.parametrize("text", ["", "a +", "* a", "(a", "a b", "_3 * a"])
def test_nonsense_is_refused(text):
    with pytest.raises(InputError, match="layout"):
        parse(text)
