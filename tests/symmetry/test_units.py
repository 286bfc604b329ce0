"""Where tensors hold units, and permuting them by layouts."""

import pytest
import torch

from mergeline.errors import InputError
from mergeline.symmetry.layout import parse
from mergeline.symmetry.permute import group_index, permute_tensor
from mergeline.symmetry.symmetry import Family, Symmetry, parameter_layout
from mergeline.symmetry.units import Span, joined_spans, spans, units_apart, units_first

FAMILIES = {
    family.name: family
    for family in (
        Family("stream", 5),
        Family("heads", 2),
        Family("queries", 3, ("heads",)),
        Family("v", 4, ("heads",)),
        Family("hidden", 2, ("#3",)),
    )
}
SIZES = {name: family.size for name, family in FAMILIES.items()}


def dims(*layouts):
    return {dim: parse(layout) for dim, layout in enumerate(layouts)}


def test_units_inside_of_a_fused_projection():
    (span,) = [s for s in spans(dims("heads * (v + _1)"), FAMILIES) if s.path == ("heads", "v")]
    assert units_first(torch.arange(10), span, SIZES).flatten().tolist() == [0, 1, 2, 3, 5, 6, 7, 8]


def test_positions_without_units_of_their_own_belong_to_the_unit_around_them():
    (span,) = spans(dims("heads * _3"), FAMILIES)
    assert units_first(torch.arange(6), span, SIZES).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_units_over_units_of_another_axis_are_joined_with_them():
    tensor = torch.arange(2 * 3 * 4).reshape(6, 4)  # [heads * queries, v]
    (outer, inner) = spans(dims("heads * queries", "v"), FAMILIES)
    assert (outer.path, inner.path) == (("heads", "queries"), ("heads", "v"))
    expected = tensor.reshape(2, 3, 4).permute(0, 2, 1).reshape(8, 3)
    assert torch.equal(units_first(tensor, inner, SIZES), expected)


def test_units_over_fixed_positions_are_counted_by_them():
    tensor = torch.arange(2 * 5 * 3).reshape(3, 2, 5)
    first, second = spans(dims("#3", "hidden", "stream"), FAMILIES)
    assert first.path == ("#3", "hidden")
    assert torch.equal(units_first(tensor, first, SIZES), tensor.reshape(6, 5))
    assert second == Span(("stream",), ((2, 1),), 0, 1)


def test_an_axis_that_no_other_counts_is_refused():
    with pytest.raises(InputError, match="lie over 'heads', which no axis"):
        list(spans(dims("stream", "v"), FAMILIES))


def test_in_activations_all_units_make_one_index():
    active = set(FAMILIES)
    shown = {dim: layout for dim, layout in dims("_7", "heads * queries", "_9", "v").items() if dim in (1, 3)}
    paths = [span.path for span in joined_spans(shown, FAMILIES, active)]
    assert paths == [("heads", "queries"), ("heads", "queries", "v")] or paths[-1] == ("heads", "queries", "v")
    values = torch.randn(7, 6, 9, 4)
    span = list(joined_spans(shown, FAMILIES, active))[-1]
    expected = values.permute(0, 2, 1, 3).reshape(63, 24)
    assert torch.equal(units_first(values, span, SIZES).T, expected)
    rows = list(joined_spans(shown, FAMILIES, {"v"}))[-1]
    assert rows.path == ("heads", "v")  # the queries are told apart by nothing: they count rows


def test_units_apart_are_a_view_with_units_in_front():
    values = torch.randn(3, 5, 4, 4)
    (span,) = spans({1: parse("stream")}, FAMILIES)
    apart = units_apart(values, span, SIZES)
    assert apart.data_ptr() == values.data_ptr()
    assert torch.equal(apart.flatten(1), values.movedim(1, 0).reshape(5, -1))


@pytest.mark.parametrize(
    ("layouts", "shape"),
    [
        (("heads * v", "stream"), (8, 5)),
        (("heads * queries", "v"), (6, 4)),
        (("#3", "hidden", "_2"), (3, 2, 2)),
        (("#3 * hidden", "heads * (v + _1)"), (6, 10)),
        (("v", "_2", "heads"), (4, 2, 2)),
    ],
)
def test_rows_of_a_permuted_tensor_are_the_permuted_rows(layouts, shape):
    """For every group: permuting a tensor and listing its units is listing them and permuting the list."""
    symmetry = Symmetry(FAMILIES, {"w": parameter_layout(layouts, ["out"] * len(layouts))})
    tensor, permutations = torch.randn(shape), symmetry.random_permutations(3)
    moved = permute_tensor(tensor, symmetry.parameters["w"], symmetry, permutations)
    assert sorted(moved.flatten().tolist()) == sorted(tensor.flatten().tolist())
    for group in symmetry.groups.values():
        index = group_index(group.structure, symmetry, permutations)
        for axis in group.axes:
            before, after = (units_first(t, axis.span, SIZES) for t in (tensor, moved))
            assert torch.equal(after.sort(dim=1).values, before[index].sort(dim=1).values)
